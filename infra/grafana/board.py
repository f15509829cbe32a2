"""The Grafana board as code: writes `penstock.json` next to this file. Change this file, not that one.

.venv/bin/python infra/grafana/board.py
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

BOARD = Path(__file__).with_name("penstock.json")

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
JOBS = '{kind=~"$kind", queue=~"$queue"}'
QUEUE = '{queue=~"$queue"}'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """A graph, or with `big` a number."""

    title: str
    description: str
    unit: str
    """A unit of Grafana: `s`, `ops` (per second), `short` (a count), `percentunit` (0 to 1)."""
    queries: dict[str, str]
    """Legend → PromQL."""
    span: int = 8
    """Columns of 24."""
    stacked: bool = False
    big: bool = False
    yellow: float | None = None
    red: float | None = None
    """From which value on a number is in that colour, and a graph has a line."""


def rate(metric: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{labels}{RATE}))"


def percentiles(metric: str, labels: str) -> dict[str, str]:
    """p50, p95 and p99 of a histogram over all that the labels select."""
    buckets = f"sum by (le) (rate({metric}_bucket{labels}{RATE}))"
    return {f"p{share}": f"histogram_quantile(0.{share}, {buckets})" for share in (50, 95, 99)}


def by_label(label: str, metric: str, labels: str) -> dict[str, str]:
    """p95 of a histogram for each value of a label."""
    buckets = f"sum by (le, {label}) (rate({metric}_bucket{labels}{RATE}))"
    return {f"{{{{{label}}}}}": f"histogram_quantile(0.95, {buckets})"}


FAILED = 'penstock_jobs_total{kind=~"$kind", queue=~"$queue", outcome=~"retry|dead|crashed"}'

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        Panel("Jobs per second", "Attempts that end, of all kinds and queues that are selected.", "ops",
              {"": f"sum(rate(penstock_jobs_total{JOBS}{RATE}))"}, span=4, big=True),
        Panel("Attempts that fail", "Share that ended in a retry, a dead letter or a crash.", "percentunit",
              {"": f"sum(rate({FAILED}{RATE})) / sum(rate(penstock_jobs_total{JOBS}{RATE}))"},
              span=4, big=True, yellow=0.05, red=0.5),
        Panel("Jobs that wait", "Jobs in the broker, of the selected queues.", "short",
              {"": f"sum(max by (queue) (penstock_queue_depth{QUEUE}))"}, span=4, big=True),
        Panel("Oldest job", "How long the job that waits longest is in its queue.", "s",
              {"": f"max(penstock_queue_oldest_seconds{QUEUE})"}, span=4, big=True, yellow=60, red=600),
        Panel("Dead letters", "Dead letters that wait for a decision.", "short",
              {"": 'sum(max by (queue, kind) (penstock_dead_letters{kind=~"$kind", queue=~"$queue"}))'},
              span=4, big=True, yellow=1, red=100),
        Panel("Slots in use", "Share of all workers' slots that run a job. At 100 % jobs wait for one.", "percentunit",
              {"": 'sum(penstock_worker_slots{state="used"}) / sum(penstock_worker_slots)'},
              span=4, big=True, yellow=0.8, red=0.95),
        Panel("Live workers", "By engine, from the ledger. 0 is an alert.", "short",
              {"{{engine}}": "max by (engine) (penstock_workers)"}, span=6, big=True),
        Panel("Live dispatchers", "From the ledger. Without one, nothing delayed is sent.", "short",
              {"": "max(penstock_dispatchers)"}, span=6, big=True),
        Panel("Processes by version", "Processes that answer Prometheus, by role and version.", "short",
              {"{{role}} {{version}}": "count by (role, version) (penstock_info)"}, span=6, big=True),
        Panel("Age of these numbers", "Age of the queues' and the fleet's numbers, of the process that read last.", "s",
              {"": "min(penstock_fleet_age_seconds)"}, span=6, big=True, yellow=30, red=120),
    ),
    "Throughput": (
        Panel("Attempts by kind", "Attempts that end per second.", "ops",
              {"{{kind}}": rate("penstock_jobs_total", JOBS, "kind")}, stacked=True),
        Panel("Attempts by outcome", "Snoozed and interrupted attempts are repeated, and are not failures.", "ops",
              {"{{outcome}}": rate("penstock_jobs_total", JOBS, "outcome")}, stacked=True),
        Panel("Attempts by engine", "Attempts that end per second, by engine.", "ops",
              {"{{engine}}": rate("penstock_jobs_total", JOBS, "engine")}, stacked=True),
    ),
    "Latency": (
        Panel("Wait", "From when a job was enqueued, or due, to its start.", "s",
              percentiles("penstock_job_wait_seconds", JOBS), span=6),
        Panel("Run", "From an attempt's start to its end.", "s",
              percentiles("penstock_job_run_seconds", JOBS), span=6),
        Panel("Wait by queue, p95", "From when a job was enqueued, or due, to its start; 95 % start sooner.", "s",
              by_label("queue", "penstock_job_wait_seconds", JOBS), span=6),
        Panel("Run by kind, p95", "From an attempt's start to its end; 95 % take less.", "s",
              by_label("kind", "penstock_job_run_seconds", JOBS), span=6),
    ),
    "Errors": (
        Panel("Failed attempts by kind", "Attempts that ended in a retry, a dead letter or a crash.", "ops",
              {"{{kind}}": f"sum by (kind) (rate({FAILED}{RATE}))"}, span=6),
        Panel("Share of failed attempts", "Of a kind's attempts. Above one half for a quarter of an hour is an alert.",
              "percentunit",
              {"{{kind}}": f"sum by (kind) (rate({FAILED}{RATE})) / {rate('penstock_jobs_total', JOBS, 'kind')}"},
              span=6, red=0.5),
        Panel("Error budget burn, 1 h", "At 1 a kind's budget lasts for 30 days; above 14.4 is an alert. Needs our "
              "recording rules.", "none",
              {"{{kind}}": 'penstock:jobs_failed:ratio1h{kind=~"$kind"} / on (kind) (1 - penstock:objective)'},
              span=6, yellow=1, red=14.4),
        Panel("Dead letters", "Dead letters that wait for a decision.", "short",
              {"{{queue}} {{kind}}": 'max by (queue, kind) (penstock_dead_letters{kind=~"$kind", queue=~"$queue"})'},
              span=6, stacked=True),
        Panel("Crashes", "Crashes under a job, and jobs that became dead letters for it, in 5 minutes.", "short",
              {"crashes of {{kind}}": f"sum by (kind) (increase(penstock_job_crashes_total{JOBS}[5m]))",
               "quarantines": f"sum(increase(penstock_quarantines_total{JOBS}[5m]))"}),
        Panel("Lost leases", "Attempts whose outcome was dropped, as another worker had taken the job over, in 5 "
              "minutes.", "short",
              {"{{instance}}": "sum by (instance) (increase(penstock_leases_lost_total[5m]))"}),
        Panel("Jobs that were not run", "By reason. Duplicates are normal after a crash or a lost connection.", "ops",
              {"{{reason}}": rate("penstock_claims_refused_total", "", "reason")}),
    ),
    "Queues": (
        Panel("Depth", "Jobs that wait in the broker.", "short",
              {"{{queue}}": f"max by (queue) (penstock_queue_depth{QUEUE})"}),
        Panel("Age of the oldest job", "Above 10 minutes, or the queue's own limit, is an alert.", "s",
              {"{{queue}}": f"max by (queue) (penstock_queue_oldest_seconds{QUEUE})"}, red=600),
        Panel("Consumers", "Live workers that consume a queue. 0 with jobs that wait is an alert.", "short",
              {"{{queue}}": f"max by (queue) (penstock_queue_consumers{QUEUE})"}),
    ),
    "Saturation": (
        Panel("Slots", "Slots of all workers that run a job, and those that are free.", "short",
              {"{{state}}": "sum by (state) (penstock_worker_slots)"}, span=6, stacked=True),
        Panel("In flight", "Jobs that a worker has fetched and not settled: running, or about to.", "short",
              {"{{instance}}": "penstock_worker_in_flight"}, span=6),
        Panel("Workers' steps, p95", "Time of a batch's fetch, claim, record and acknowledge: the broker's and the "
              "ledger's share.", "s", by_label("step", "penstock_worker_step_seconds", ""), span=6),
        Panel("Workers that take jobs", "1 while a worker is ready.", "short",
              {"{{instance}}": "penstock_worker_ready"}, span=6),
    ),
    "Dispatcher": (
        Panel("Due and not sent", "Jobs whose time has come, and that no dispatcher has sent yet.", "short",
              {"due": "max(penstock_dispatcher_due)"}, span=6),
        Panel("Lateness", "How long the first of the due jobs, and the most overdue schedule, is due.", "s",
              {"jobs": "max(penstock_dispatcher_lateness_seconds)",
               "schedules": "max(penstock_schedule_lateness_seconds)"}, span=6, red=60),
        Panel("Sent by source", "Jobs that the dispatchers sent to the broker.", "ops",
              {"{{source}}": rate("penstock_dispatcher_sent_total", "", "source")}, span=6, stacked=True),
        Panel("Pruned rows", "Rows that retention deleted.", "ops",
              {"{{rows}}": rate("penstock_pruned_total", "", "rows")}, span=6),
    ),
    "Outboxes, limits, workflows": (
        Panel("Jobs in outboxes", "Jobs that are committed and not sent.", "short",
              {"{{outbox}}": "max by (outbox) (penstock_outbox_jobs)"}, span=6),
        Panel("Lag of outboxes", "How long the first job of an outbox waits to be sent.", "s",
              {"{{outbox}}": "max by (outbox) (penstock_outbox_lag_seconds)"}, span=6, red=60),
        Panel("Jobs that wait for a limit", "By limit. They hold no slot of a worker.", "short",
              {"{{limit}}": "max by (limit) (penstock_limit_waiting)"}, span=6),
        Panel("Workflows that rest", "No dispatcher has the code that they began with.", "short",
              {"{{kind}}": "max by (kind) (penstock_workflows_resting)"}, span=6),
    ),
    "Faults": (
        Panel("Faults", "Faults that processes outlived, in 5 minutes.", "short",
              {"{{fault}}": "sum by (fault) (increase(penstock_faults_total[5m]))"}, span=12),
        Panel("Restarts of loops", "Loops that failed and were started again, in 5 minutes.", "short",
              {"{{instance}} {{loop}}": "sum by (instance, loop) (increase(penstock_loop_restarts_total[5m]))"},
              span=12),
    ),
}  # fmt: skip


def targets(panel: Panel) -> Iterator[prometheus.Dataquery]:
    for letter, (legend, query) in zip(string.ascii_uppercase, panel.queries.items(), strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend or panel.title)
        yield target.instant() if panel.big else target.range()


def thresholds(panel: Panel) -> builders.ThresholdsConfig:
    steps = [dashboard.Threshold(color="green")]
    steps += [dashboard.Threshold(value=panel.yellow, color="yellow")] if panel.yellow is not None else []
    steps += [dashboard.Threshold(value=panel.red, color="red")] if panel.red is not None else []
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def number(panel: Panel) -> stat.Panel:
    reduced = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    built = stat.Panel().height(3).reduce_options(reduced).graph_mode(common.BigValueGraphMode.NONE)
    built.color_mode(common.BigValueColorMode.VALUE if panel.red else common.BigValueColorMode.NONE)
    return built.no_value("0" if panel.unit in ("short", "ops", "percentunit") else "-")


def graph(panel: Panel) -> timeseries.Panel:
    legend = common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    tooltip.sort(common.SortOrder.DESCENDING)
    built = timeseries.Panel().height(8).min(0).line_width(1).show_points(common.VisibilityMode.NEVER)
    built.legend(legend.display_mode(common.LegendDisplayMode.LIST)).tooltip(tooltip)
    if panel.stacked:
        built.fill_opacity(30).stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if panel.red is not None:
        lines = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        built.thresholds_style(lines)
    return built


def variable(name: str, label: str, metric: str) -> builders.QueryVariable:
    """A choice among the values of a label; all of them at first."""
    query: dict[str, object] = {"qryType": 1, "query": f"label_values({metric}, {name})", "refId": "variable"}
    choice = builders.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    choice.multi(True).include_all(True).all_value(".*").sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    choice.current(dashboard.VariableOption(text=["All"], value=["$__all"]))
    return choice.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)


def board() -> str:
    """The board as JSON."""
    built = builders.Dashboard("Penstock").uid("penstock").tags(["penstock"]).timezone("browser").editable()
    built.description("Jobs, queues, workers and dispatchers. Its alerts and their runbooks: docs/monitoring.md")
    built.time("now-1h", "now").refresh("30s").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    alerts = 'ALERTS{alertname=~"Penstock.*", alertstate="firing"}'
    built.annotation(
        builders.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(True).icon_color("red").expr(alerts)
    )
    built.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    built.with_variable(variable("queue", "Queue", "penstock_queue_depth"))
    built.with_variable(variable("kind", "Kind", "penstock_jobs_total"))
    identity = 0
    for title, panels in ROWS.items():
        identity += 1
        built.with_row(builders.Row(title).id(identity))
        for panel in panels:
            identity += 1
            shape = number(panel) if panel.big else graph(panel)
            shape.id(identity).title(panel.title).description(panel.description).span(panel.span)
            shape.unit(panel.unit).datasource(SOURCE).thresholds(thresholds(panel)).targets(list(targets(panel)))
            built.with_panel(shape)
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    BOARD.write_text(board())
