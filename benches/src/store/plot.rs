//! A plot of lines over shares of memory, as SVG.

use std::path::Path;

use millstream_common::{Error, Result};
use plotters::prelude::*;

/// A line of a plot: percent of memory, and a ratio from 0 to 1.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Writes a plot.
pub fn plot(file: &Path, title: &str, lines: &[Line]) -> Result<()> {
    draw(file, title, lines).map_err(|e| {
        Error::unavailable(format!("the plot cannot be written ({e})"))
            .at(file.display().to_string())
            .next("name another file by --plot")
    })
}

fn draw(file: &Path, title: &str, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|l| &l.points).map(|p| p.0);
    let (least, most) = (points().fold(f64::MAX, f64::min), points().fold(0.0, f64::max));
    let root = SVGBackend::new(file, (900, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), 0.0..1.0)?;
    chart.configure_mesh().x_desc("memory, % of the state").y_desc("hits").draw()?;
    for (i, line) in lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plot.svg");
        let line = |name: &str, y| Line { name: name.to_owned(), points: vec![(1.0, y), (10.0, 0.9)] };
        plot(&file, "hits", &[line("zipf", 0.5), line("uniform", 0.1)]).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("zipf") && svg.contains("uniform"));
        let nowhere = plot(&folder.path().join("no/such/plot.svg"), "hits", &[line("a", 0.1)]).unwrap_err();
        assert!(nowhere.to_string().contains("--plot"));
    }
}
