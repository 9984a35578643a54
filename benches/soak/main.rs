//! A mixed load on every engine while one generation of servers follows the other, for as long as one
//! likes.
//!
//! ```text
//! cargo bench -p benches --features soak --bench soak                    # a minute
//! cargo bench -p benches --features soak --bench soak -- --minutes 60
//! cargo bench -p benches --features soak --bench soak -- --minutes 10 --save
//! ```
//!
//! Clients churn, keep connections alive, speak TLS and HTTP, read slowly, begin slowly, are rude, have
//! handlers panic, or never pause. All the while the servers in one process are asked to stop, each with
//! a lame duck and a successor on its ports. Checked: clients that behave have lost nothing, the accounts
//! balance, and in the end the process has no more descriptors and threads than before and has not grown.
//! With `--save` that is drawn over time, to `benches/results/soak.svg`.

#[cfg(target_os = "linux")]
mod clients;
#[cfg(target_os = "linux")]
mod picture;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
mod soak;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match soak::run() {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("what a process has open is read from /proc");
}
