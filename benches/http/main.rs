//! HTTP: hyper on gracious beside hyper on tokio.
//!
//! ```text
//! cargo bench -p benches --bench http               # what a request costs, 7 rounds, on one core
//! cargo bench -p benches --bench http -- 3          # 3 rounds
//! cargo bench -p benches --bench http -- stops      # wrk, while one server follows the other
//! ```
//!
//! Every server is a process of its own. A request's cost is the processor time that this process has
//! used for it, while clients with a connection each ask whenever they are answered. The servers take
//! turns inside a round, in another order each time; the ratios are taken inside a round, and their
//! medians are printed.
//!
//! With `stops`, `wrk` keeps 50 connections busy at a port whose server is asked to stop again and again.
//! Each time it is a lame duck for a second, and its successor joins the port meanwhile. Every request
//! that wrk calls an error counts.

#[cfg(target_os = "linux")]
mod cost;
#[cfg(target_os = "linux")]
mod stops;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let run = || -> std::io::Result<()> {
        if benches::servers::serve_if_asked()? {
            return Ok(());
        }
        if std::env::args().any(|arg| arg == "stops") {
            return stops::run();
        }
        if !benches::machine::is_pinned() {
            return Err(benches::machine::start_again_pinned());
        }
        let rounds = std::env::args().find_map(|arg| arg.parse().ok());
        cost::run(rounds.unwrap_or(7))
    };
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the servers of this benchmark are for Linux");
}
