//! Metrics (feature `metrics`): what is told is what the page says, on every engine, and adds up.
#![cfg(feature = "metrics")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use gracious::Metrics;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use support::TestRuntime;
use support::client::{Client, HOUR, echo, eventually, tcp};
use support::peer::settled;

on_every_runtime!(
    what_is_told_is_what_the_page_says,
    a_stop_is_told_to_its_end,
    counts_are_told_by_themselves,
);

fn prometheus() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// The value of a metric with these labels, in the order in which they are told.
fn value(name: &str, labels: &str) -> Option<f64> {
    let page = prometheus().render();
    let start = format!("{name}{{{labels}}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&start));
    value.map(|value| value.parse().unwrap())
}

/// The label of one test on one engine.
fn named(test: &str, runtime: &TestRuntime) -> (Metrics, String) {
    let name = format!("{test}-{:?}", runtime.engine);
    prometheus();
    (
        Metrics::new().label("server", &name),
        format!("server=\"{name}\""),
    )
}

async fn what_is_told_is_what_the_page_says(runtime: TestRuntime) {
    let (metrics, label) = named("page", &runtime);
    let server = tcp(runtime)
        .metrics(metrics.every(HOUR))
        .bind()
        .await
        .unwrap();
    let running = server.spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    client.finish();
    assert_eq!(client.rest(), "");
    running.handle().shutdown();
    settled(running.await);

    let shown = prometheus().render();
    let mut told = BTreeSet::new();
    for line in shown.lines().filter(|it| it.contains(&label)) {
        let (name, rest) = line.split_once('{').unwrap();
        let name = name
            .strip_suffix("_sum")
            .or(name.strip_suffix("_count"))
            .unwrap_or(name);
        let (labels, _) = rest.split_once('}').unwrap();
        let own = labels
            .split(',')
            .find(|it| it.starts_with("state=") || it.starts_with("kind="));
        let kind = shown
            .lines()
            .find_map(|it| it.strip_prefix(&format!("# TYPE {name} ")));
        // Without buckets the exporter shows a histogram so.
        let kind = kind.unwrap().replace("summary", "histogram");
        told.insert((name.to_owned(), kind, own.unwrap_or_default().to_owned()));
    }
    let page = include_str!("../docs/metrics.md");
    let mut said = BTreeSet::new();
    for row in page.lines().filter(|it| it.starts_with("| `gracious_")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (name, kind) = (cells[1].trim_matches('`'), cells[2]);
        let labels: Vec<_> = cells[3].split('`').skip(1).step_by(2).collect();
        let mut entry = |own: String| said.insert((name.to_owned(), kind.to_owned(), own));
        match &labels[..] {
            [] => _ = entry(String::new()),
            [key, values @ ..] => values
                .iter()
                .for_each(|it| _ = entry(format!("{key}=\"{it}\""))),
        }
    }
    assert_eq!(told, said);
}

async fn a_stop_is_told_to_its_end(runtime: TestRuntime) {
    let (metrics, label) = named("stop", &runtime);
    let server = tcp(runtime)
        .metrics(metrics.every(None))
        .bind()
        .await
        .unwrap();
    let handle = server.handle();
    let state = |state: &str| value("gracious_state", &format!("state=\"{state}\",{label}"));
    let active = |state: &str| {
        value(
            "gracious_connections_active",
            &format!("state=\"{state}\",{label}"),
        )
    };
    assert_eq!((state("bound"), state("serving")), (Some(1.0), Some(0.0)));
    let running = server.spawn(echo);
    let [mut idle, mut busy] = [(); 2].map(|()| Client::of(&running));
    assert_eq!(
        (idle.ask("hello"), busy.ask("hello")),
        ("hello".into(), "hello".into())
    );
    busy.send("half");
    eventually("half a line", || handle.stats().bytes_in == 16);
    handle.record_metrics();
    assert_eq!((state("bound"), state("serving")), (Some(0.0), Some(1.0)));
    assert_eq!((active("idle"), active("busy")), (Some(1.0), Some(1.0)));
    handle.shutdown();
    assert_eq!(idle.rest(), "");
    eventually("the end of the idle one", || handle.stats().completed == 1);
    // The clock of a drain is that of the server.
    std::thread::sleep(Duration::from_millis(5));
    handle.record_metrics();
    assert_eq!(
        (state("serving"), state("draining")),
        (Some(0.0), Some(1.0))
    );
    assert_eq!((active("idle"), active("busy")), (Some(0.0), Some(1.0)));
    assert!(value("gracious_drain_seconds", &label).unwrap() > 0.0);
    busy.send(" a line\n");
    assert_eq!(busy.rest(), "half a line\n");
    let report = settled(running.await);
    assert_eq!((state("draining"), state("closed")), (Some(0.0), Some(1.0)));
    assert_eq!((active("idle"), active("busy")), (Some(0.0), Some(0.0)));
    let count = |name: &str| value(&format!("gracious_{name}_total"), &label).unwrap() as u64;
    assert_eq!(count("connections_accepted"), report.accepted);
    assert_eq!(count("connections_completed"), 2);
    assert_eq!(count("bytes_read"), report.bytes_in);
    assert_eq!(count("bytes_written"), report.bytes_out);
    assert_eq!(value("gracious_handler_seconds_count", &label), Some(2.0));
    let drain = value("gracious_drain_seconds", &label).unwrap();
    assert!(
        (drain - report.drain.as_secs_f64()).abs() < 1e-6,
        "{drain} {report}"
    );
    // Nothing comes after the end.
    handle.record_metrics();
    assert_eq!(count("connections_accepted"), report.accepted);
    assert_eq!((state("serving"), state("closed")), (Some(0.0), Some(1.0)));
}

async fn counts_are_told_by_themselves(runtime: TestRuntime) {
    let (metrics, label) = named("interval", &runtime);
    let metrics = metrics.every(Duration::from_millis(5));
    let running = tcp(runtime)
        .metrics(metrics)
        .bind()
        .await
        .unwrap()
        .spawn(echo);
    let mut client = Client::of(&running);
    assert_eq!(client.ask("hello"), "hello");
    eventually("a count", || {
        value("gracious_bytes_read_total", &label) == Some(6.0)
    });
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    settled(running.await);
}
