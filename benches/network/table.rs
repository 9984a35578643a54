//! The whole table, or what is asked for of it.

use std::process::ExitCode;

use clap::Parser;

use crate::rig::link::Link;
use crate::rig::scenarios::{Cell, SCENARIOS};
use crate::rig::server::{BARE, ENGINES, Kind, User, serve_if_asked};
use crate::rig::table::{Table, upper_bound};
use crate::tokio::TRACKED;

/// gracious across a wide-area link, beside a bare loop and tokio with a `TaskTracker`
#[derive(Debug, Parser)]
#[command(name = "network", version)]
struct Options {
    /// How many stops in each cell
    #[arg(long, value_name = "N", default_value_t = 5)]
    stops: u32,
    /// Only scenarios with this in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    scenarios: Vec<String>,
    /// Only servers with this in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    servers: Vec<String>,
    /// Only as this user
    #[arg(long, value_name = "root or 65534", num_args = 1..)]
    users: Vec<String>,
    /// The lengths of the way, there and back
    #[arg(long, value_name = "MILLISECONDS", num_args = 1.., default_values_t = [0, 40, 200])]
    trips: Vec<u64>,
    /// The shares of packets that are lost
    #[arg(long, value_name = "PERCENT", num_args = 1.., default_values_t = [0, 1])]
    losses: Vec<u64>,
    /// What the relay draws from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run() -> ExitCode {
    let kinds: Vec<Kind> = [BARE, TRACKED].into_iter().chain(ENGINES).collect();
    if serve_if_asked(&kinds) {
        return ExitCode::SUCCESS;
    }
    let options = Options::parse_from(std::env::args().filter(|arg| arg != "--bench"));
    let Some(link) = Link::lay(options.seed) else {
        return ExitCode::FAILURE;
    };
    let mut table = Table::default();
    for (name, scenario) in SCENARIOS {
        if !asked_for(&options.scenarios, name) {
            continue;
        }
        for &round_trip_ms in &options.trips {
            for &loss_percent in &options.losses {
                for user in [User::Root, User::Nobody] {
                    if !asked_for(&options.users, &user.to_string()) {
                        continue;
                    }
                    for kind in &kinds {
                        if asked_for(&options.servers, kind.name) {
                            let cell = Cell::new(kind.name, user, round_trip_ms, loss_percent);
                            table.push(scenario(&link, cell, options.stops));
                        }
                    }
                }
            }
        }
    }
    table.explain();
    for kind in &kinds {
        let (lost, asked) = table.lossy(|name| name == kind.name);
        if asked > 0 {
            let bound = upper_bound(lost, asked);
            println!(
                "{}: where packets are lost, {lost} of {asked}; below {bound:.5} with 95 %",
                kind.name
            );
        }
    }
    ExitCode::SUCCESS
}

/// Nothing asked for is everything.
fn asked_for(asked: &[String], name: &str) -> bool {
    asked.is_empty() || asked.iter().any(|part| name.contains(part.as_str()))
}
