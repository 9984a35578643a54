//! What is asked for on the command line.

use std::io;

use benches::machine;
use benches::servers::{self, SERVERS, Server};
use clap::Parser;

use crate::measure::{Plan, measure};
use crate::results::{Mode, Results};
use crate::workloads::{WORKLOADS, Workload};
use crate::{syscalls, table};

/// gracious beside its peers
#[derive(Debug, Parser)]
#[command(name = "peers", version)]
struct Options {
    /// Run servers and load on one core
    #[arg(long)]
    pin: bool,
    /// How many rounds; 7 by default, and 3 with --quick
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// A quarter of the load, and fewer rounds
    #[arg(long)]
    quick: bool,
    /// Only servers of this name, or with this in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    servers: Vec<String>,
    /// Only workloads of this name, or with this in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    workloads: Vec<String>,
    /// Compare with this server, in every workload
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Write the results, a table and a picture of them to benches/results
    #[arg(long, conflicts_with_all = ["servers", "workloads", "reference"])]
    save: bool,
    /// Write table and picture again from the results in benches/results
    #[arg(long, exclusive = true)]
    redraw: bool,
    /// Count the system calls per request by kind, with perf
    #[arg(long, conflicts_with_all = ["save", "reference", "rounds", "quick"])]
    syscalls: bool,
    /// Name servers and workloads
    #[arg(long, exclusive = true)]
    list: bool,
}

pub(crate) fn run() -> io::Result<()> {
    if servers::serve_if_asked()? {
        return Ok(());
    }
    // `cargo bench` adds it always, which would be one option too many for those that stand alone.
    let options = Options::parse_from(std::env::args().filter(|arg| arg != "--bench"));
    if options.list {
        SERVERS
            .iter()
            .for_each(|server| println!("{}", server.name));
        println!();
        WORKLOADS
            .iter()
            .for_each(|workload| println!("{}", workload.name));
        return Ok(());
    }
    if options.redraw {
        return redraw();
    }
    let mut servers = chosen(&options.servers, SERVERS, |server| server.name, "server")?;
    let workloads = chosen(
        &options.workloads,
        WORKLOADS,
        |workload| workload.name,
        "workload",
    )?;
    let reference = options
        .reference
        .as_deref()
        .map(servers::find)
        .transpose()?;
    if options.pin && !machine::is_pinned() {
        return Err(machine::start_again_pinned());
    }
    let descriptors = machine::raise_descriptor_limit()?;
    if options.syscalls {
        return syscalls::print(&servers, &workloads);
    }
    add_references(&mut servers, &workloads, reference)?;
    let plan = Plan {
        rounds: options.rounds.unwrap_or(if options.quick { 3 } else { 7 }),
        quick: options.quick,
        reference,
        descriptors,
    };
    let results = measure(&servers, &workloads, &plan)?;
    print!("{}", table::of(&results));
    if options.save {
        results.save()?;
        results.draw()?;
    }
    Ok(())
}

fn redraw() -> io::Result<()> {
    let mut found = false;
    for mode in [Mode::Core, Mode::Free] {
        if let Some(results) = Results::load(mode)? {
            results.draw()?;
            found = true;
        }
    }
    if found {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "there are no results yet: --save writes them",
    ))
}

/// Those of that name, or if there is none, those with it in their names; all for no names.
fn chosen<T>(
    wanted: &[String],
    all: &'static [T],
    name: fn(&T) -> &'static str,
    kind: &str,
) -> io::Result<Vec<&'static T>> {
    if wanted.is_empty() {
        return Ok(all.iter().collect());
    }
    let is_wanted = |item: &T, wanted: &str| match all.iter().any(|item| name(item) == wanted) {
        true => name(item) == wanted,
        false => name(item).contains(wanted),
    };
    for wanted in wanted {
        if !all.iter().any(|item| is_wanted(item, wanted)) {
            let message = format!("no {kind} is called {wanted}: --list names them all");
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
    }
    let chosen = all
        .iter()
        .filter(|item| wanted.iter().any(|wanted| is_wanted(item, wanted)));
    Ok(chosen.collect())
}

/// Without the server it is compared with, a workload has no figures.
fn add_references(
    servers: &mut Vec<&'static Server>,
    workloads: &[&'static Workload],
    reference: Option<&'static Server>,
) -> io::Result<()> {
    for workload in workloads {
        let needed = match reference {
            Some(reference) => vec![reference],
            None => workload
                .references()
                .map(servers::find)
                .collect::<io::Result<_>>()?,
        };
        for server in needed {
            if !servers.iter().any(|it| it.name == server.name) {
                servers.insert(0, server);
            }
        }
    }
    Ok(())
}
