//! Nobody who was let in is reset, in a storm of connects that a stop comes into.

use crate::rig::link::Link;
use crate::rig::scenarios::{Cell, storms};
use crate::rig::server::User::{self, Nobody, Root};
use crate::rig::table::{Table, upper_bound};

/// Whether the library keeps its listeners until the handshakes under way have ended. Until it does,
/// what it loses is shown and not judged.
const WAITS_FOR_HANDSHAKES: bool = false;

const STOPS: u32 = 5;

/// Every engine at every distance, and every pair of anything else.
const CELLS: [Cell; 12] = [
    cell("async-std", Root, 0, 0),
    cell("async-std", Nobody, 40, 0),
    cell("async-std", Root, 200, 1),
    cell("smol", Nobody, 0, 1),
    cell("smol", Root, 40, 0),
    cell("smol", Nobody, 200, 0),
    cell("workers", Nobody, 0, 0),
    cell("workers", Root, 40, 1),
    cell("workers", Nobody, 200, 0),
    cell("shards", Root, 0, 0),
    cell("shards", Nobody, 40, 1),
    cell("shards", Nobody, 200, 1),
];

const fn cell(kind: &'static str, user: User, round_trip_ms: u64, loss_percent: u64) -> Cell {
    Cell::new(kind, user, round_trip_ms, loss_percent)
}

#[test]
#[ignore = "needs root, network namespaces and minutes"]
fn nobody_who_was_let_in_is_reset() {
    let Some(link) = Link::lay(1) else { return };
    let mut table = Table::default();
    for cell in [
        cell("bare loop", Nobody, 40, 0),
        cell("bare loop", Root, 40, 1),
    ] {
        table.push(storms(&link, cell, STOPS, false));
    }
    // Else nothing is shown by those who lose nobody.
    assert!(table.rows.iter().all(|row| row.tally.lost() > 0));
    for (number, cell) in CELLS.into_iter().enumerate() {
        table.push(storms(&link, cell, STOPS, number % 3 == 2));
    }
    table.explain();
    let engines = |kind: &str| kind != "bare loop";
    let (lost, asked) = table.lossy(engines);
    let bound = upper_bound(lost, asked);
    println!("with 1 % of packets lost, {lost} of {asked}: below {bound:.5} with 95 %");
    if !WAITS_FOR_HANDSHAKES {
        return;
    }
    for row in &table.rows {
        let lossless = row.cell.loss_percent == 0 && engines(row.cell.kind);
        assert!(!lossless || row.tally.lost() == 0, "{}", row.explanation());
    }
    assert!(asked >= 10_000 && bound <= 0.001, "{lost} of {asked}");
}

#[test]
fn every_pair_is_in_a_cell() {
    type Property = fn(&Cell) -> String;
    let properties: [Property; 4] = [
        |cell| cell.kind.to_owned(),
        |cell| cell.user.to_string(),
        |cell| cell.round_trip_ms.to_string(),
        |cell| format!("{} %", cell.loss_percent),
    ];
    for (number, one) in properties.iter().enumerate() {
        for other in &properties[number + 1..] {
            let values = |property: &Property| {
                let mut values: Vec<String> = CELLS.iter().map(property).collect();
                values.sort();
                values.dedup();
                values
            };
            for one_value in values(one) {
                for other_value in values(other) {
                    assert!(
                        CELLS
                            .iter()
                            .any(|cell| one(cell) == one_value && other(cell) == other_value),
                        "no cell with {one_value} and {other_value}"
                    );
                }
            }
        }
    }
}
