//! Times, what is said of them, and the report.

use std::time::Duration;

#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The value below which this percentage of the times lies; NaN of none.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last * percent).div_ceil(100)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    pub fn median_ms(&self) -> f64 {
        self.percentile_ms(50)
    }

    pub fn mean_ms(&self) -> f64 {
        self.0.iter().sum::<Duration>().as_secs_f64() * 1e3 / self.0.len() as f64
    }
}

#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    figures: Vec<String>,
}

impl Report {
    pub fn times(&mut self, what: &str, times: &Times) {
        let [min, median, p99] = [0, 50, 99].map(|percent| times.percentile_ms(percent));
        self.lines.push(format!("{what:<64} {min:>9.2} {median:>9.2} {p99:>9.2} {:>6}", times.0.len()));
    }

    pub fn note(&mut self, text: &str) {
        self.lines.push(text.into());
    }

    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        let places = if value.abs() < 0.1 { 4 } else { 2 };
        self.figures.push(format!("figure {name} {value:.places$} {unit}"));
    }

    pub fn print(&self) {
        println!("{:<64} {:>9} {:>9} {:>9} {:>6}", "milliseconds", "min", "median", "p99", "of");
        self.lines.iter().chain(&self.figures).for_each(|line| println!("{line}"));
    }
}
