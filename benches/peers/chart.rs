//! Results as a picture: a panel for each workload, a bar for each server.

use std::fmt::Display;
use std::io;

use benches::servers::{self, Family, REFERENCE};
use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE};

use crate::results::{Measurement, Results, Series, Spread};
use crate::table::significant;

/// An SVG of everything that is compared with tokio.
pub(crate) fn of(results: &Results) -> io::Result<String> {
    let panels: Vec<Panel> = results.measurements.iter().filter_map(Panel::of).collect();
    let bars = panels
        .iter()
        .map(|panel| panel.bars.len())
        .max()
        .unwrap_or(0) as i32;
    let panel_height = PANEL_HEAD + bars * BAR_STEP + PANEL_FOOT;
    let height = HEAD + (panels.len() as i32 + 1) / COLUMNS * panel_height + FOOT;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32));
        let page = Page(area.into_drawing_area());
        // Of its own, since it is looked at on dark pages, too.
        page.0.fill(&WHITE).map_err(io::Error::other)?;
        page.head(results)?;
        for (index, panel) in panels.iter().enumerate() {
            let (row, column) = (index as i32 / COLUMNS, index as i32 % COLUMNS);
            page.panel(panel, column * (WIDTH / COLUMNS), HEAD + row * panel_height)?;
        }
        for (line, text) in results.circumstances().iter().enumerate() {
            let at = (MARGIN, height - FOOT + 16 + 17 * line as i32);
            page.text(text, at, HPos::Left, &Letters::small(FAINT))?;
        }
        page.0.present().map_err(io::Error::other)?;
    }
    Ok(svg)
}

// Pixels.
const WIDTH: i32 = 1120;
const COLUMNS: i32 = 2;
const MARGIN: i32 = 24;
const HEAD: i32 = 116;
const FOOT: i32 = 48;
const PANEL_HEAD: i32 = 38;
const PANEL_FOOT: i32 = 42;
const BAR_STEP: i32 = 18;
const BAR_HEIGHT: i32 = 12;
/// For the names of the servers.
const NAMES: i32 = 186;
/// From a ratio of 0 to one of [`MOST`].
const SCALE: i32 = 230;
/// Where the columns of numbers end, beyond the scale.
const RATIO: i32 = 38;
const RATE: i32 = 76;

/// Bars end here; what is beyond is told by its number alone.
const MOST: f64 = 2.0;
const GRID: [f64; 5] = [0.0, 0.5, 1.0, 1.5, 2.0];

const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const FAINT: RGBColor = RGBColor(0x66, 0x6d, 0x76);
const LINES: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

const LEGEND: [(Family, &str); 5] = [
    (Family::Workers, "gracious, workers"),
    (Family::Default, "gracious, on its runtime"),
    (Family::Graceful, "peers with a graceful stop"),
    (Family::Bare, "bare accept-and-spawn loops"),
    (Family::Floor, "system calls alone"),
];

fn colour(family: Family) -> RGBColor {
    match family {
        Family::Workers => RGBColor(0xc2, 0x41, 0x0c),
        Family::Default => RGBColor(0xf5, 0x9e, 0x4a),
        Family::Graceful => RGBColor(0x2f, 0x6f, 0xae),
        Family::Bare => RGBColor(0xa3, 0xb8, 0xcf),
        Family::Floor => RGBColor(0x8a, 0x8f, 0x96),
    }
}

/// A workload, its servers from the cheapest on.
struct Panel<'a> {
    measurement: &'a Measurement,
    /// What a ratio of 1 stands for.
    unit: String,
    bars: Vec<Bar<'a>>,
}

struct Bar<'a> {
    name: &'a str,
    family: Family,
    ratio: Spread,
    rate: Option<Spread>,
}

impl<'a> Panel<'a> {
    fn of(measurement: &'a Measurement) -> Option<Self> {
        if measurement.reference != REFERENCE {
            return None;
        }
        let bar = |series: &'a Series| {
            // A server that is no more is in the file, and not in the picture.
            let server = servers::find(&series.server)
                .ok()
                .filter(|server| server.in_chart)?;
            Some(Bar {
                name: &series.server,
                family: server.family,
                ratio: measurement.ratios(series)?,
                rate: measurement.rate_ratios(series),
            })
        };
        let mut bars: Vec<Bar> = measurement.series.iter().filter_map(bar).collect();
        bars.sort_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
        let reference = measurement
            .series
            .iter()
            .find(|series| series.server == REFERENCE)?;
        let one = Spread::of(reference.values.clone())?.median;
        Some(Self {
            measurement,
            unit: format!(
                "{}, 1 = {} {}",
                measurement.quantity,
                significant(one),
                measurement.unit
            ),
            bars,
        })
    }
}

struct Page<'a>(DrawingArea<SVGBackend<'a>, Shift>);

struct Letters {
    size: i32,
    style: FontStyle,
    colour: RGBColor,
}

impl Letters {
    fn small(colour: RGBColor) -> Self {
        Self {
            size: 12,
            style: FontStyle::Normal,
            colour,
        }
    }

    fn bold(size: i32) -> Self {
        Self {
            size,
            style: FontStyle::Bold,
            colour: INK,
        }
    }
}

impl Page<'_> {
    fn head(&self, results: &Results) -> io::Result<()> {
        let title = "gracious beside its peers: what a request costs the server";
        self.text(title, (MARGIN, 28), HPos::Left, &Letters::bold(21))?;
        let reading = format!(
            "Ratios to a bare loop on tokio's multi-thread runtime, median of {} rounds; \
             thin lines: their range. Of ratios lower is better, of rates higher.",
            results.rounds,
        );
        self.text(&reading, (MARGIN, 56), HPos::Left, &Letters::small(FAINT))?;
        let mut x = MARGIN;
        for (family, label) in LEGEND {
            self.rectangle((x, 77), (x + 12, 89), colour(family).filled())?;
            self.text(label, (x + 18, 83), HPos::Left, &Letters::small(INK))?;
            x += 48 + 7 * label.len() as i32;
        }
        Ok(())
    }

    fn panel(&self, panel: &Panel, left: i32, top: i32) -> io::Result<()> {
        let zero = left + MARGIN + NAMES;
        let first = top + PANEL_HEAD;
        let last = first + panel.bars.len() as i32 * BAR_STEP;
        let name = &panel.measurement.workload;
        self.text(
            name,
            (left + MARGIN, top + 6),
            HPos::Left,
            &Letters::bold(15),
        )?;
        let head = top + 24;
        let faint = Letters::small(FAINT);
        self.text(&panel.unit, (zero, head), HPos::Left, &faint)?;
        self.text("ratio", (zero + SCALE + RATIO, head), HPos::Right, &faint)?;
        if panel.bars.iter().any(|bar| bar.rate.is_some()) {
            self.text("rate", (zero + SCALE + RATE, head), HPos::Right, &faint)?;
        }
        for ratio in GRID {
            let x = zero + across(ratio);
            self.line([(x, first - 4), (x, last + 2)], LINES.stroke_width(1))?;
            self.text(ratio, (x, last + 12), HPos::Center, &faint)?;
        }
        for (index, bar) in panel.bars.iter().enumerate() {
            self.bar(bar, zero, first + index as i32 * BAR_STEP + BAR_STEP / 2)?;
        }
        let one = zero + across(1.0);
        self.line([(one, first - 4), (one, last + 2)], INK.stroke_width(1))
    }

    fn bar(&self, bar: &Bar, zero: i32, y: i32) -> io::Result<()> {
        let Spread { median, min, max } = bar.ratio;
        let letters = match bar.family {
            Family::Workers | Family::Default => Letters::bold(12),
            _ => Letters::small(INK),
        };
        self.text(bar.name, (zero - 8, y), HPos::Right, &letters)?;
        let half = BAR_HEIGHT / 2;
        let end = zero + across(median);
        self.rectangle(
            (zero, y - half),
            (end, y + half),
            colour(bar.family).filled(),
        )?;
        let range = [(zero + across(min), y), (zero + across(max), y)];
        self.line(range, INK.stroke_width(1))?;
        let after = zero + SCALE;
        self.text(
            format!("{median:.2}"),
            (after + RATIO, y),
            HPos::Right,
            &letters,
        )?;
        match bar.rate {
            Some(Spread { median, .. }) => {
                let rate = format!("{median:.2}");
                self.text(rate, (after + RATE, y), HPos::Right, &Letters::small(FAINT))
            }
            None => Ok(()),
        }
    }

    fn text(
        &self,
        text: impl Display,
        at: (i32, i32),
        side: HPos,
        how: &Letters,
    ) -> io::Result<()> {
        let font = ("sans-serif", how.size, how.style).into_font();
        let style = TextStyle::from(font)
            .color(&how.colour)
            .pos(Pos::new(side, VPos::Center));
        self.0
            .draw(&Text::new(text.to_string(), at, style))
            .map_err(io::Error::other)
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> io::Result<()> {
        self.0
            .draw(&Rectangle::new([from, to], style))
            .map_err(io::Error::other)
    }

    fn line(&self, ends: [(i32, i32); 2], style: ShapeStyle) -> io::Result<()> {
        self.0
            .draw(&PathElement::new(ends, style))
            .map_err(io::Error::other)
    }
}

fn across(ratio: f64) -> i32 {
    (ratio.min(MOST) / MOST * f64::from(SCALE)).round() as i32
}
