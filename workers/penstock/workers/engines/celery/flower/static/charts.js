/* Draws the series of a page with uPlot, and again on each refresh, each change of the theme and of the width. */
/*global $, uPlot */

(function () {
    "use strict";

    var charts = {};

    function css(name) {
        return window.getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    }

    function seconds(value) {
        if (value === null || value === undefined) {
            return "—";
        }
        if (value < 1) {
            return (value * 1000).toPrecision(2) * 1 + " ms";
        }
        if (value < 120) {
            return value.toPrecision(2) * 1 + " s";
        }
        return value < 7200 ? Math.round(value / 60) + " min" : (value / 3600).toPrecision(2) * 1 + " h";
    }

    function number(value) {
        return value === null || value === undefined ? "—" : (value < 100 ? value.toPrecision(2) * 1 : Math.round(value)).toLocaleString();
    }

    function options(box, lines, text) {
        var muted = css("--flower-text-muted") || css("--bs-secondary-color"),
            grid = {stroke: css("--bs-border-color"), width: 1},
            axis = {stroke: muted, grid: grid, ticks: grid, font: "12px system-ui, sans-serif"};
        return {
            width: Math.max(box.clientWidth, 200),
            height: 200,
            tzDate: function (time) {
                return uPlot.tzDate(new Date(time * 1000), "UTC");
            },
            cursor: {drag: {x: false, y: false}},
            scales: {y: {range: function (_, low, high) {
                return [0, high > 0 ? high * 1.1 : 1];
            }}},
            axes: [Object.assign({}, axis, {values: times}), Object.assign({}, axis, {size: 64, values: function (_, values) {
                return values.map(text);
            }})],
            series: [{value: "{YYYY}-{MM}-{DD} {HH}:{mm} UTC"}].concat(lines.map(function (line) {
                return {
                    label: line.label,
                    stroke: css(line.colour),
                    dash: line.dash,
                    width: 2,
                    fill: line.fill ? css(line.colour) + "22" : undefined,
                    spanGaps: false,
                    points: {show: line.points, size: 4},
                    value: function (_, value) {
                        return text(value);
                    }
                };
            }))
        };
    }

    /* Times of the axis, in UTC; whole days as dates. */
    function times(_, ticks, __, ___, step) {
        return ticks.map(function (tick) {
            var text = new Date(tick * 1000).toISOString();
            return step >= 86400 ? text.slice(5, 10) : text.slice(11, 16);
        });
    }

    function column(points, name, each) {
        return points.map(function (point) {
            return point[name] === null ? null : point[name] / each;
        });
    }

    function draw(again) {
        var source = document.getElementById("console-series"),
            points,
            moments,
            step;
        if (!source || !window.uPlot) {
            return;
        }
        points = JSON.parse(source.getAttribute("data-points"));
        step = Number(source.getAttribute("data-step"));
        moments = points.map(function (point) {
            return point.at;
        });
        document.querySelectorAll("[data-chart]").forEach(function (box) {
            var name = box.getAttribute("data-chart"),
                rate = name === "throughput",
                lines = rate ? [
                    {label: "Ended per s", column: "ended", colour: "--bs-primary", fill: true},
                    {label: "Errors per s", column: "errors", colour: "--bs-danger", dash: [6, 3]}
                ] : [
                    {label: "p50", column: name + "_p50", colour: "--bs-primary", points: true},
                    {label: "p95", column: name + "_p95", colour: "--bs-warning", dash: [6, 3], points: true}
                ],
                data = [moments].concat(lines.map(function (line) {
                    return column(points, line.column, rate ? step : 1);
                }));
            if (charts[name] && !again && charts[name].root.parentNode === box) {
                charts[name].setData(data);
                return;
            }
            if (charts[name]) {
                charts[name].destroy();
            }
            charts[name] = new uPlot(options(box, lines, rate ? number : seconds), data, box);
        });
    }

    $(document).on("console:refreshed", function () {
        draw(false);
    });
    $(window).on("resize", function () {
        window.clearTimeout(draw.later);
        draw.later = window.setTimeout(function () {
            draw(true);
        }, 150);
    });
    new MutationObserver(function () {
        draw(true);
    }).observe(document.documentElement, {attributes: true, attributeFilter: ["data-bs-theme"]});
    draw(true);
}());
