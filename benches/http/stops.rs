//! What wrk sees of stops.

use std::io;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use benches::process::ServerProcess;
use benches::servers;
use benches::servers::http::{ADDRESS, LAME_DUCK, SERVERS};

/// How long wrk asks.
const SECONDS: u64 = 12;
/// A stop comes so long after the one before is over.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn run() -> io::Result<()> {
    println!("| server | stops | requests | connect | read | write | timeout | not 200 |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for server in SERVERS {
        let mut now = ServerProcess::start(server)?;
        let address = now.address();
        let wrk = Command::new("wrk")
            .args([
                "-t1",
                "-c50",
                &format!("-d{SECONDS}s"),
                &format!("http://{address}/"),
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        let over = Instant::now() + Duration::from_secs(SECONDS) - 3 * LAME_DUCK;
        let mut stops = 0;
        while Instant::now() < over {
            sleep(PAUSE);
            now.stop();
            // The successor joins after the stop has begun.
            sleep(LAME_DUCK / 10);
            let address = ["env".to_owned(), format!("{ADDRESS}={address}")];
            let next = ServerProcess::start_under(&address, servers::find(server.name)?)?;
            now.wait()?;
            now = next;
            stops += 1;
        }
        let said = wrk.wait_with_output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let number = |before: &str, after: &str| {
            let from = said.find(before).map(|at| &said[at + before.len()..]);
            let number = from
                .and_then(|from| from.split_once(after))
                .map(|(it, _)| it.trim());
            number.unwrap_or("0").to_owned()
        };
        let requests = said
            .lines()
            .find_map(|line| line.split_once(" requests in "));
        println!(
            "| {} | {stops} | {} | {} | {} | {} | {} | {} |",
            server.name,
            requests.map_or("?", |(count, _)| count.trim()),
            number("Socket errors: connect ", ","),
            number(", read ", ","),
            number(", write ", ","),
            number(", timeout ", "\n"),
            number("Non-2xx or 3xx responses: ", "\n"),
        );
    }
    Ok(())
}
