/* Draws a workflow's graph as SVG: dagre lays it out. */
/*global $, dagre */

(function () {
    "use strict";

    var SVG = "http://www.w3.org/2000/svg",
        WIDTH = 190,
        HEIGHT = 54,
        place = document.getElementById("graph"),
        drawn = "";

    function element(name, attributes, parent) {
        var made = document.createElementNS(SVG, name);
        Object.keys(attributes).forEach(function (key) { made.setAttribute(key, attributes[key]); });
        parent.appendChild(made);
        return made;
    }

    function text(words, x, y, kind, parent) {
        var made = element("text", {x: x, y: y, "class": kind, "text-anchor": "middle"}, parent);
        made.textContent = words.length > 26 ? words.slice(0, 25) + "…" : words;
    }

    function draw(workflow) {
        var graph = new dagre.graphlib.Graph(),
            steps = workflow.steps.filter(function (step) { return !step.undoes || step.state !== "pending"; }),
            names = steps.map(function (step) { return step.name; }),
            svg, size, defs, marker;
        graph.setGraph({rankdir: window.innerWidth < 768 ? "TB" : "LR", nodesep: 24, ranksep: 44, marginx: 12, marginy: 12});
        graph.setDefaultEdgeLabel(function () { return {}; });
        steps.forEach(function (step) { graph.setNode(step.name, {width: WIDTH, height: HEIGHT, step: step}); });
        steps.forEach(function (step) {
            if (step.undoes) {
                graph.setEdge(step.undoes, step.name, {undoes: true});
            } else {
                (step.needs || []).forEach(function (needed) {
                    if (names.indexOf(needed) >= 0) {
                        graph.setEdge(needed, step.name);
                    }
                });
            }
        });
        dagre.layout(graph);
        size = graph.graph();
        svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("viewBox", "0 0 " + size.width + " " + size.height);
        svg.setAttribute("width", size.width);
        svg.setAttribute("height", size.height);
        svg.setAttribute("role", "group");
        svg.setAttribute("aria-label", "Graph of " + names.length + " steps; the table below says the same");
        defs = element("defs", {}, svg);
        marker = element("marker", {id: "arrow", viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 7, markerHeight: 7, orient: "auto"}, defs);
        element("path", {d: "M0 0 10 5 0 10z", "class": "graph-arrow"}, marker);
        graph.edges().forEach(function (edge) {
            var points = graph.edge(edge).points.map(function (point) { return point.x + "," + point.y; }).join(" ");
            element("polyline", {points: points, "class": "graph-edge" + (graph.edge(edge).undoes ? " graph-undoes" : ""), "marker-end": "url(#arrow)"}, svg);
        });
        graph.nodes().forEach(function (name) {
            var node = graph.node(name), step = node.step, x = node.x - WIDTH / 2, y = node.y - HEIGHT / 2,
                words = step.members === null ? step.state : step.state + ", " + step.done + " of " + step.members,
                parent = svg;
            if (step.job_id) {
                parent = element("a", {href: place.getAttribute("data-job") + encodeURIComponent(step.job_id)}, svg);
            }
            element("rect", {x: x, y: y, width: WIDTH, height: HEIGHT, rx: 8, "class": "graph-step graph-" + step.state}, parent);
            text(name, node.x, node.y - 4, "graph-name", parent);
            text(words, node.x, node.y + 15, "graph-state", parent);
        });
        place.replaceChildren(svg);
    }

    function look() {
        $.getJSON(place.getAttribute("data-from")).done(function (answer) {
            var now = JSON.stringify(answer.workflow.steps) + (window.innerWidth < 768);
            if (now !== drawn) {
                drawn = now;
                draw(answer.workflow);
            }
        });
    }

    look();
    $(document).on("console:refreshed", look);
    window.addEventListener("resize", look);
}());
