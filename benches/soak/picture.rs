//! A soak as a picture: a row for each engine; its memory, its descriptors and its threads over time.

use std::io;

use plotters::prelude::{
    ChartBuilder, IntoDrawingArea, IntoFont, PathElement, RGBColor, SVGBackend, WHITE,
};
use plotters::style::Color;

use crate::process::Sample;
use crate::soak::Course;

// Pixels.
const WIDTH: u32 = 1120;
const ROW: u32 = 190;

const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const STOP: RGBColor = RGBColor(0xd9, 0xdd, 0xe2);

type Value = fn(&Sample) -> f64;

/// What is drawn of a sample, from left to right.
const COLUMNS: [(&str, Value); 3] = [
    ("MiB", |it| it.mebibytes),
    ("descriptors", |it| it.descriptors),
    ("threads", |it| it.threads),
];

/// An SVG; each vertical line is a stop.
pub(crate) fn of(courses: &[Course]) -> io::Result<String> {
    let mut svg = String::new();
    {
        let size = (WIDTH, ROW * courses.len().max(1) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        // Of its own, since it is looked at on dark pages, too.
        area.fill(&WHITE).map_err(io::Error::other)?;
        let panels = area.split_evenly((courses.len().max(1), COLUMNS.len()));
        for (index, panel) in panels.iter().enumerate() {
            let Some(course) = courses.get(index / COLUMNS.len()) else {
                continue;
            };
            let (name, value) = COLUMNS[index % COLUMNS.len()];
            let end = course.samples.last().map_or(1.0, |it| it.at.max(1.0));
            let most = course.samples.iter().map(value).fold(1.0, f64::max) * 1.1;
            let mut chart = ChartBuilder::on(panel)
                .caption(
                    format!("{}: {name}", course.engine),
                    ("sans-serif", 14).into_font(),
                )
                .margin(8)
                .x_label_area_size(20)
                .y_label_area_size(40)
                .build_cartesian_2d(0.0..end, 0.0..most)
                .map_err(io::Error::other)?;
            let mut mesh = chart.configure_mesh();
            let mesh = mesh.disable_mesh().x_labels(6).y_labels(5);
            mesh.draw().map_err(io::Error::other)?;
            let stops = course.stops.iter();
            let stops = stops.map(|at| PathElement::new([(*at, 0.0), (*at, most)], STOP.filled()));
            chart.draw_series(stops).map_err(io::Error::other)?;
            let points: Vec<_> = course.samples.iter().map(|it| (it.at, value(it))).collect();
            let line = PathElement::new(points, LINE.stroke_width(2));
            chart.draw_series([line]).map_err(io::Error::other)?;
        }
        area.present().map_err(io::Error::other)?;
    }
    Ok(svg)
}
