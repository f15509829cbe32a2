/* Buttons and forms with `data-act`: they POST to that address, after a question if there is a `data-confirm`. */
/*global $, bootstrap */

(function () {
    "use strict";

    var toasts = document.getElementById("toast-container"),
        dialog = document.getElementById("console-confirm"),
        agreed = null;

    function toast(message, isError) {
        var box = document.createElement("div"),
            body = document.createElement("div"),
            close = document.createElement("button");
        box.className = "toast d-flex align-items-center border-0 text-bg-" + (isError ? "danger" : "success");
        box.setAttribute("role", isError ? "alert" : "status");
        body.className = "toast-body";
        body.textContent = message;
        close.type = "button";
        close.className = "btn-close btn-close-white me-2 m-auto";
        close.setAttribute("data-bs-dismiss", "toast");
        close.setAttribute("aria-label", "Close");
        box.appendChild(body);
        box.appendChild(close);
        toasts.appendChild(box);
        box.addEventListener("hidden.bs.toast", function () { box.remove(); });
        bootstrap.Toast.getOrCreateInstance(box, {delay: isError ? 15000 : 6000}).show();
    }

    function ask(question, then) {
        if (!question) {
            then();
            return;
        }
        document.getElementById("console-confirm-text").textContent = question;
        agreed = then;
        bootstrap.Modal.getOrCreateInstance(dialog).show();
    }

    /* POST a JSON object; returns jQuery's promise of the answer. */
    function post(address, values) {
        return $.ajax({
            url: address,
            type: "POST",
            contentType: "application/json",
            data: JSON.stringify(values || {}),
            dataType: "json"
        });
    }

    function reason(answer) {
        return answer.responseJSON && answer.responseJSON.error || answer.responseText || "The console does not answer";
    }

    /* Empty fields are left out; fields of the same name, or with `data-many`, become a list. */
    function values_of(form) {
        var values = {};
        Array.prototype.forEach.call(form.elements, function (field) {
            if (!field.name || field.disabled || field.type === "submit" || field.type === "button") {
                return;
            }
            if (field.type === "checkbox" && !field.hasAttribute("value")) {
                values[field.name] = field.checked;
                return;
            }
            if ((field.type === "checkbox" || field.type === "radio") && !field.checked || field.value === "") {
                return;
            }
            if (field.hasAttribute("data-many")) {
                values[field.name] = (values[field.name] || []).concat([field.value]);
            } else {
                values[field.name] = field.type === "number" ? Number(field.value) : field.value;
            }
        });
        return values;
    }

    function run(source, values) {
        var buttons = source.matches("form") ? $(source).find("button") : $(source);
        buttons.prop("disabled", true);
        post(source.getAttribute("data-act"), values)
            .done(function (answer) {
                toast(answer.message || "Done", false);
                $(source).trigger("console:done", [answer]);
                if (source.hasAttribute("data-then")) {
                    window.location.assign(source.getAttribute("data-then"));
                } else if (window.penstock && window.penstock.refresh) {
                    if (document.activeElement && source.contains(document.activeElement)) {
                        document.activeElement.blur();
                    }
                    window.penstock.refresh();
                }
            })
            .fail(function (answer) {
                toast(reason(answer), true);
            })
            .always(function () {
                buttons.prop("disabled", false);
            });
    }

    $(document).on("click", "button[data-act]", function () {
        var button = this;
        ask(button.getAttribute("data-confirm"), function () {
            run(button, JSON.parse(button.getAttribute("data-body") || "{}"));
        });
    });
    $(document).on("submit", "form[data-act]", function (event) {
        var form = this;
        event.preventDefault();
        ask(form.getAttribute("data-confirm"), function () {
            run(form, values_of(form));
        });
    });
    $("#console-confirm-form").on("submit", function (event) {
        var then = agreed;
        event.preventDefault();
        agreed = null;
        bootstrap.Modal.getOrCreateInstance(dialog).hide();
        if (then) {
            then();
        }
    });

    window.penstock = window.penstock || {};
    $.extend(window.penstock, {post: post, toast: toast, ask: ask, reason: reason, values_of: values_of});
}());
