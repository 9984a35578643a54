//! Results as Markdown, which is read as it is on a terminal.

use std::fmt::Write;

use crate::results::{Interruption, Measurement, Results, Spread};

pub(crate) fn of(results: &Results) -> String {
    let [machine, packages] = results.circumstances();
    let mut text = format!("{machine}\n\n{packages}\n\n{INTRODUCTION}\n");
    for measurement in &results.measurements {
        text.push('\n');
        text += &figures(measurement);
    }
    if !results.interruptions.is_empty() {
        text.push('\n');
        text += &interruptions(&results.interruptions);
    }
    text
}

const INTRODUCTION: &str = "Medians of the rounds, with the range of their ratios. A ratio is taken \
within its round; lower is better, and of rates higher is.";

fn figures(measurement: &Measurement) -> String {
    let Measurement {
        workload,
        quantity,
        unit,
        reference,
        series,
    } = measurement;
    let mut rows = vec![vec![
        "server".to_owned(),
        unit.clone(),
        format!("to {reference}"),
        "range".to_owned(),
        "rate".to_owned(),
        "range".to_owned(),
    ]];
    for series in series {
        let value = Spread::of(series.values.clone());
        let [ratio, ratios] = columns(measurement.ratios(series));
        let [rate, rates] = columns(measurement.rate_ratios(series));
        let value = value.map_or_else(String::new, |value| significant(value.median));
        rows.push(vec![
            series.server.clone(),
            value,
            ratio,
            ratios,
            rate,
            rates,
        ]);
    }
    if series.iter().all(|series| series.rates.is_empty()) {
        rows.iter_mut().for_each(|row| row.truncate(4));
    }
    format!("### {workload}: {quantity}\n\n{}", aligned(&rows))
}

fn columns(spread: Option<Spread>) -> [String; 2] {
    spread.map_or_else(Default::default, |spread| {
        [
            format!("{:.2}", spread.median),
            format!("{:.2} to {:.2}", spread.min, spread.max),
        ]
    })
}

/// Three digits or more, whatever the size.
pub(crate) fn significant(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn interruptions(found: &[Interruption]) -> String {
    let head = [
        "server",
        "clients",
        "answered",
        "reply cut short",
        "reset",
        "ended unanswered",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for it in found {
        rows.push(vec![
            it.server.clone(),
            it.clients.to_string(),
            it.answered.to_string(),
            it.truncated.to_string(),
            it.reset.to_string(),
            it.closed.to_string(),
        ]);
    }
    format!(
        "### {INTERRUPTION}\n\n{}\n{INTERRUPTION_EXPLAINED}\n",
        aligned(&rows)
    )
}

const INTERRUPTION: &str = "A stop in the middle of requests: how the connections ended";
const INTERRUPTION_EXPLAINED: &str = "A client that saw an ordinary end instead of a reply had sent \
its request while the end was on its way to it, and can ask elsewhere. One that saw a reset cannot \
know what became of its request. Bare loops exit.";

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ = match column {
                0 => write!(text, "| {cell:<width$} "),
                _ => write!(text, "| {cell:>width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text += &if column == 0 {
                    format!("|{dashes}-")
                } else {
                    format!("|{dashes}:")
                };
            }
            text += "|\n";
        }
    }
    text
}
