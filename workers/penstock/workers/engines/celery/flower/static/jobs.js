/* The list of jobs: several values in one field, saved views, and acts on selected jobs or on all that match. */
/*global $ */

(function () {
    "use strict";

    var penstock = window.penstock,
        filters = document.getElementById("job-filters"),
        acts = document.getElementById("job-acts"),
        views = document.getElementById("job-views"),
        STORE = "penstock.job-views",
        isStopped = false;

    /* Empty fields do not belong into the address; tags and fields are separated by commas. */
    filters.addEventListener("submit", function (event) {
        var given = new URLSearchParams();
        event.preventDefault();
        new FormData(filters).forEach(function (value, name) {
            var values = name === "tag" || name === "field" ? value.split(",") : [value];
            values.forEach(function (each) {
                if (each.trim()) {
                    given.append(name, each.trim());
                }
            });
        });
        window.location.assign(window.location.pathname + (given.toString() ? "?" + given : ""));
    });

    function saved() {
        try {
            return JSON.parse(window.localStorage.getItem(STORE)) || {};
        } catch (error) {
            return {};
        }
    }

    function store(all) {
        window.localStorage.setItem(STORE, JSON.stringify(all));
        show_views();
    }

    function item(label, address, click) {
        var line = document.createElement("li"), link = document.createElement(address === null ? "button" : "a");
        link.className = "dropdown-item";
        link.textContent = label;
        if (address === null) {
            link.type = "button";
            link.addEventListener("click", click);
        } else {
            link.href = window.location.pathname + address;
        }
        line.appendChild(link);
        views.appendChild(line);
    }

    function show_views() {
        var all = saved();
        views.textContent = "";
        item("Dead in the last hour", "?state=dead&finished_since=1h");
        item("Running", "?state=running");
        Object.keys(all).sort().forEach(function (name) {
            item(name, all[name]);
            item("Forget “" + name + "”", null, function () {
                delete all[name];
                store(all);
            });
        });
        item("Save this view …", null, function () {
            var name = window.prompt("Name of this view");
            if (name && name.trim()) {
                all[name.trim()] = window.location.search;
                store(all);
            }
        });
    }
    show_views();

    if (!acts) {
        return;
    }

    function show_options() {
        acts.querySelectorAll("[data-for]").forEach(function (label) {
            label.hidden = label.getAttribute("data-for") !== acts.elements.act.value;
        });
    }
    acts.elements.act.addEventListener("change", show_options);
    show_options();

    $(document).on("change", "#job-all", function () {
        var isChecked = this.checked;
        $(".job-chosen").each(function () { this.checked = isChecked; });
    });

    function request() {
        var body = {act: acts.elements.act.value};
        if (acts.elements.which.value === "all") {
            body.filter = JSON.parse(acts.getAttribute("data-filter"));
        } else {
            body.ids = $(".job-chosen:checked").map(function () { return this.value; }).get();
        }
        if (body.act === "reschedule") {
            body.due = acts.elements.due.value;
        } else if (body.act === "move") {
            body.queue = acts.elements.queue.value;
        } else if (body.act === "retry") {
            body.force = acts.elements.force.checked;
        }
        return body;
    }

    function show_progress(words) {
        document.getElementById("job-progress").hidden = !words;
        document.getElementById("job-progress-text").textContent = words || "";
    }

    function end(words, isError) {
        show_progress("");
        penstock.toast(words, isError);
        penstock.refresh();
    }

    /* A part of at most two seconds at a time, until there is no next one or a person stops it. */
    function run(body, done, refused) {
        penstock.post(acts.getAttribute("data-address"), body).done(function (answer) {
            done += answer.done;
            refused += answer.refused;
            var words = done.toLocaleString("en") + " jobs" + (refused ? ", " + refused.toLocaleString("en") + " not" : "");
            if (answer.next && !isStopped) {
                show_progress(words + " …");
                run($.extend({}, body, {after: answer.next, line: answer.line}), done, refused);
            } else {
                end((answer.next ? "Stopped after " : "Done: ") + words, false);
            }
        }).fail(function (answer) {
            end(penstock.reason(answer), true);
        });
    }

    acts.addEventListener("submit", function (event) {
        var body = request();
        event.preventDefault();
        if (body.ids && !body.ids.length) {
            penstock.toast("Select jobs in the list first, or choose “all that match”", true);
            return;
        }
        penstock.post(acts.getAttribute("data-address"), $.extend({}, body, {dry_run: true})).done(function (answer) {
            penstock.ask(body.act + ": " + answer.message + " match and can be changed. Go on?", function () {
                isStopped = false;
                show_progress("…");
                run(body, 0, 0);
            });
        }).fail(function (answer) {
            penstock.toast(penstock.reason(answer), true);
        });
    });
    document.getElementById("job-stop").addEventListener("click", function () { isStopped = true; });
}());
