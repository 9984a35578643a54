//! A server of lines, and beside it a page that tells Prometheus how it goes, to the end of its drain.
//!
//! ```sh
//! cargo run --example metrics --features http,metrics
//! nc 127.0.0.1 8888                            # some lines; leave half of one, and press Ctrl-C there
//! curl http://127.0.0.1:9000/metrics           # before, meanwhile
//! ```
//!
//! The page's own server is stopped by the end of the other one.

mod usage;

use std::{convert::Infallible, io};

use futures_lite::AsyncWriteExt;
use gracious::{Connection, Metrics, Report, Server, web};
use metrics_exporter_prometheus::PrometheusBuilder;

async fn echo(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        writer.write_all(format!("{}\n", line?).as_bytes()).await?;
    }
    Ok(())
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let words = usage::words(
        "metrics [ADDRESS] [PAGE]",
        ["127.0.0.1:8888", "127.0.0.1:9000"],
    );
    let prometheus = PrometheusBuilder::new().set_buckets(&[0.01, 0.1, 1.0, 10.0]);
    let prometheus = prometheus.and_then(PrometheusBuilder::install_recorder);
    let prometheus = prometheus.map_err(io::Error::other)?;

    let metrics = Metrics::new().every(None); // told when the page is asked for
    let server = Server::builder().listen(&words[0]).metrics(metrics);
    let server = server.stop_on_signals().bind().await?;
    let page = Server::bind(&words[1]).await?;
    println!("{server}");
    println!("{page}");

    let handle = server.handle();
    let show = web::serve(move |_request| {
        handle.record_metrics();
        prometheus.run_upkeep();
        let text = prometheus.render();
        async { Ok::<_, Infallible>(web::Response::new(text)) }
    });
    let (report, _of_the_page) = page.serve_until(show, server.serve(echo)).await?;
    report.unwrap_or_else(|| Err(io::Error::other("the page could not be shown to the end")))
}
