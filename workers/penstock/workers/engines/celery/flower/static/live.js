/* Refreshes what is inside `[data-live]` on each tick of the server's stream, in place. */
/*global $, Idiomorph */

(function () {
    "use strict";

    var page = document.querySelector("[data-stream]"),
        dot = document.getElementById("console-live-dot"),
        text = document.getElementById("console-live-text"),
        away = document.getElementById("console-away"),
        asking = false,
        POLL_MILLISECONDS = 5000,
        source = null,
        poll = null;

    if (!page) {
        return;
    }

    function show(isLive, words, reason) {
        if (dot) {
            dot.className = "status-dot " + (isLive ? "status-dot-live" : "status-dot-error");
            text.textContent = words;
        }
        if (away) {
            away.hidden = !reason;
            away.textContent = reason || "";
        }
    }

    /* What a person has opened, chosen or typed stays as it is. */
    function keep(oldNode, newNode) {
        if (!(oldNode instanceof Element) || !(newNode instanceof Element)) {
            return true;
        }
        if (oldNode.hasAttribute("data-keep") || oldNode.contains(document.activeElement) && oldNode.matches("form")) {
            return false;
        }
        if (oldNode.matches("details") && oldNode.open) {
            newNode.setAttribute("open", "");
        }
        if (oldNode.matches(".show, .collapsing") && newNode.matches(".dropdown-menu, .collapse")) {
            newNode.classList.add("show");
        }
        return !(oldNode.matches("input, select, textarea"));
    }

    function merge(html) {
        var there = new DOMParser().parseFromString(html, "text/html"),
            news = there.querySelectorAll("[data-live]");
        document.querySelectorAll("[data-live]").forEach(function (part, number) {
            if (news[number]) {
                Idiomorph.morph(part, news[number], {callbacks: {beforeNodeMorphed: keep}});
            }
        });
        $(document).trigger("console:refreshed", [there]);
    }

    function refresh() {
        var selected = window.getSelection();
        if (asking || document.hidden || selected && String(selected)) {
            return;
        }
        asking = true;
        $.ajax({url: window.location.pathname + window.location.search, dataType: "html", timeout: 30000})
            .done(function (html) {
                merge(html);
                show(true, "Live", "");
            })
            .fail(function (answer) {
                var there = new DOMParser().parseFromString(answer.responseText || "", "text/html"),
                    reason = there.querySelector("[data-live]");
                show(false, "Not live", answer.status === 0
                    ? "The console does not answer. This page comes back by itself."
                    : (reason ? reason.textContent.trim() : "Answer " + answer.status));
            })
            .always(function () {
                asking = false;
            });
    }

    function listen() {
        if (!window.EventSource) {
            poll = window.setInterval(refresh, POLL_MILLISECONDS);
            return;
        }
        source = new EventSource(page.getAttribute("data-stream"));
        source.addEventListener("tick", function () {
            if (poll) {
                window.clearInterval(poll);
                poll = null;
            }
            if (text && text.textContent === "Not live" && !away.textContent) {
                show(true, "Live", "");
            }
            refresh();
        });
        source.addEventListener("error", function () {
            poll = poll || window.setInterval(refresh, POLL_MILLISECONDS);
            if (source.readyState === EventSource.CLOSED) {
                window.setTimeout(listen, POLL_MILLISECONDS);
            }
        });
    }

    window.penstock = window.penstock || {};
    window.penstock.refresh = refresh;
    listen();
}());
