//! Those inside when a stop comes: they get their answers, and a clean end.

use std::time::Duration;

use crate::not_yet::GIVES_UP_THE_UNREACHABLE;
use crate::rig::link::Link;
use crate::rig::scenarios::Cell;
use crate::rig::scenarios::cut_cables::{
    CUT_DEADLINE, CUT_OF_A_SORT, HEALTHY, cut_cables, unreachable,
};
use crate::rig::scenarios::half_closed::half_closed;
use crate::rig::scenarios::keep_alive::keep_alive;
use crate::rig::scenarios::slow_readers::slow_readers;
use crate::rig::server::BARE;
use crate::rig::server::User::{Nobody, Root};
use crate::rig::table::{Row, Table};

const STOPS: u32 = 5;

#[track_caller]
fn assert_nobody_is_lost(table: &Table) {
    table.explain();
    for row in &table.rows {
        // Where packets are lost, one that is lost again and again may be the last.
        let allowed = if row.cell.loss_percent == 0 { 0 } else { 1 };
        let lost = row.tally.lost();
        assert!(lost <= allowed, "{}", row.explanation());
    }
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn keep_alive_clients_see_an_answer_or_a_clean_end() {
    let Some(link) = Link::lay(3) else { return };
    let mut table = Table::default();
    for cell in [
        Cell::new("async-std", Nobody, 40, 0),
        Cell::new("smol", Root, 200, 1),
        Cell::new("workers", Nobody, 0, 0),
        Cell::new("shards", Nobody, 40, 1),
    ] {
        table.push(keep_alive(&link, cell, STOPS, false));
    }
    assert_nobody_is_lost(&table);
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn a_lame_duck_answers_every_request_of_keep_alive_clients() {
    let Some(link) = Link::lay(4) else { return };
    let mut table = Table::default();
    for cell in [
        Cell::new("async-std", Root, 40, 1),
        Cell::new("smol", Nobody, 0, 0),
        Cell::new("workers", Root, 200, 0),
        Cell::new("shards", Nobody, 40, 0),
    ] {
        table.push(keep_alive(&link, cell, STOPS, true));
    }
    assert_nobody_is_lost(&table);
    for row in table.rows.iter().filter(|row| row.cell.loss_percent == 0) {
        assert_eq!(row.tally.unanswered, 0, "{}", row.cell);
    }
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn slow_readers_get_all_of_eight_mebibytes() {
    let Some(link) = Link::lay(5) else { return };
    let mut table = Table::default();
    for cell in [
        Cell::new("async-std", Nobody, 40, 0),
        Cell::new("smol", Root, 0, 1),
        Cell::new("workers", Nobody, 200, 0),
        Cell::new("shards", Root, 40, 0),
    ] {
        table.push(slow_readers(&link, cell, STOPS));
    }
    assert_nobody_is_lost(&table);
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn half_closed_peers_get_all_their_answers() {
    let Some(link) = Link::lay(6) else { return };
    let mut table = Table::default();
    for cell in [
        Cell::new("async-std", Root, 200, 0),
        Cell::new("smol", Nobody, 40, 1),
        Cell::new("workers", Root, 0, 0),
        Cell::new("shards", Nobody, 40, 0),
    ] {
        table.push(half_closed(&link, cell, STOPS));
    }
    assert_nobody_is_lost(&table);
}

/// The account of each server is `clients` accepted, of whom so many were aborted.
#[track_caller]
fn assert_accounts(row: &Row, clients: u32, aborted: u32) {
    for account in &row.accounts {
        let [clients, aborted] = [clients, aborted].map(u64::from);
        assert_eq!(
            (account.accepted, account.aborted),
            (clients, aborted),
            "{}: {account:?}",
            row.cell
        );
    }
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn peers_who_are_cut_off_cost_a_stop_its_deadline_and_no_more() {
    let Some(link) = Link::lay(7) else { return };
    let mut table = Table::default();
    for cell in [
        Cell::new("async-std", Nobody, 40, 0),
        Cell::new("smol", Root, 0, 0),
        Cell::new("workers", Nobody, 200, 0),
        Cell::new("shards", Root, 40, 0),
    ] {
        table.push(cut_cables(&link, cell, STOPS));
    }
    assert_nobody_is_lost(&table);
    for row in &table.rows {
        // Who sends and who is sent to; to the idle ones nothing is owed.
        assert_accounts(row, 3 * CUT_OF_A_SORT + HEALTHY, 2 * CUT_OF_A_SORT);
        for took in &row.stops {
            assert!(*took < CUT_DEADLINE + SLACK, "{}: {took:?}", row.cell);
        }
    }
}

/// Generous, for a busy machine, and less than a stop takes that waits for one peer after the other.
const SLACK: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn peers_who_acknowledge_nothing_are_given_up() {
    let Some(link) = Link::lay(8) else { return };
    let mut table = Table::default();
    // What the kernel can do, if it is told.
    table.push(unreachable(&link, Cell::new(BARE.name, Nobody, 40, 0), 1));
    if GIVES_UP_THE_UNREACHABLE {
        for cell in [
            Cell::new("async-std", Nobody, 40, 0),
            Cell::new("smol", Root, 0, 0),
            Cell::new("workers", Nobody, 200, 0),
            Cell::new("shards", Root, 40, 0),
        ] {
            table.push(unreachable(&link, cell, 2));
        }
    }
    for row in &table.rows {
        // They are gone before the stop, which has nothing to wait for.
        assert_accounts(row, 3 * CUT_OF_A_SORT, 0);
        for (took, account) in row.stops.iter().zip(&row.accounts) {
            assert!(*took < SLACK, "{}: {took:?}", row.cell);
            assert_eq!(account.failed, u64::from(3 * CUT_OF_A_SORT), "{account:?}");
        }
    }
}
