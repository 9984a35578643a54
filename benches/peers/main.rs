//! gracious beside its peers, in one run.
//!
//! ```text
//! cargo bench -p benches --bench peers -- --pin             # servers and load on one core
//! cargo bench -p benches --bench peers -- --pin --save      # and write table and picture of it
//! cargo bench -p benches --bench peers -- --redraw          # both, from what was measured before
//! cargo bench -p benches --bench peers -- --servers 'gracious async-std' --reference async-std
//! cargo bench -p benches --bench peers -- --syscalls --servers 'gracious workers(1)'
//! ```
//!
//! What counts is the processor time that a server used per request, or per connection where each
//! makes only one. The rate says as much about the load and the machine. All servers take turns
//! within each round, and the ratio to the reference is taken there, because a machine drifts by
//! more between two runs than servers differ: the figure is the median of the rounds' ratios, and
//! their range tells how far to believe it. `--pin` is the mode with the least noise. Unpinned, the
//! threads of a server and the load compete for the cores.

#[cfg(target_os = "linux")]
mod chart;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod syscalls;
#[cfg(target_os = "linux")]
mod table;
#[cfg(target_os = "linux")]
mod workloads;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match options::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this benchmark asks Linux for the processor time of its servers");
}
