//! Charts, drawn by the server: bars over time, each with its figures in words.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::super::time::rfc3339;
use super::show;

/// Width of a bar with its gap, and height of a chart, in units of the drawing.
const STEP: usize = 10;
const HEIGHT: f64 = 100.0;

/// One part of each bar.
pub struct Series {
    /// Its class in the style sheet.
    pub class: &'static str,
    /// What people read.
    pub name: &'static str,
}

/// One bar: the values of all series, or `None` where nothing is known.
pub type Bar = Option<Vec<u64>>;

/// Bars from the bottom to the top, oldest to newest.
pub struct Chart<'a> {
    pub title: &'a str,
    pub series: &'a [Series],
    pub bars: Vec<Bar>,
    /// The time of one bar.
    pub slot: Duration,
    /// When the last bar ends.
    pub end: SystemTime,
    /// Whether the series stand one on the other; else beside each other.
    pub is_stacked: bool,
    /// Whether a value is what is there at the time, and no count of what happened in it.
    pub is_level: bool,
    /// How a value is written.
    pub written: fn(u64, Duration) -> String,
}

impl Chart<'_> {
    /// Draws the chart.
    pub fn draw(&self) -> Markup {
        let height = |bar: &Vec<u64>| {
            if self.is_stacked { bar.iter().sum() } else { bar.iter().copied().max().unwrap_or(0) }
        };
        let most = self.bars.iter().flatten().map(height).max().unwrap_or(0);
        let width = self.bars.len() * STEP;
        let span = self.slot * u32::try_from(self.bars.len()).unwrap_or(u32::MAX);
        html! {
            figure.chart {
                figcaption {
                    h3 { (self.title) }
                    ul.legend { @for series in self.series {
                        li { span class={ "key " (series.class) } aria-hidden="true" {} (series.name) }
                    } }
                    span.peak { @if most > 0 { "peak " ((self.written)(most, self.slot)) } @else { "nothing yet" } }
                }
                svg role="img" aria-label=(self.in_words()) viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" {
                    @for (at, bar) in self.bars.iter().enumerate() {
                        @if let Some(bar) = bar { g { title { (self.of_bar(at, bar)) } (self.parts(at, bar, most)) } }
                    }
                }
                div.axis aria-hidden="true" { span { (show::span(span)) " ago" } span { "now" } }
            }
        }
    }

    fn parts(&self, at: usize, bar: &[u64], most: u64) -> Markup {
        #[allow(clippy::cast_precision_loss)]
        let scaled = |value: u64| if most == 0 { 0.0 } else { value as f64 / most as f64 * (HEIGHT - 2.0) };
        let room = STEP - 2;
        let share = if self.is_stacked { room } else { room / self.series.len().max(1) };
        let tall: Vec<_> = bar.iter().map(|&value| if value > 0 { scaled(value).max(1.5) } else { 0.0 }).collect();
        html! {
            // The whole column answers to the pointer.
            rect.column x=(at * STEP) y="0" width=(STEP) height=(HEIGHT) {}
            @for (number, (height, series)) in tall.iter().zip(self.series).enumerate() {
                @let x = at * STEP + 1 + if self.is_stacked { 0 } else { number * share };
                @let below = if self.is_stacked { tall[..number].iter().sum() } else { 0.0 };
                @let y = HEIGHT - height - below;
                rect class=(series.class) x=(x) y=(format!("{y:.2}")) width=(share) height=(format!("{height:.2}")) {}
            }
        }
    }

    fn of_bar(&self, at: usize, bar: &[u64]) -> String {
        let left = self.slot * u32::try_from(self.bars.len() - at).unwrap_or(u32::MAX);
        let begin = self.end.checked_sub(left).map(rfc3339).unwrap_or_default();
        let figures = self.series.iter().zip(bar);
        let figures = figures.map(|(series, value)| format!("{} {}", series.name, (self.written)(*value, self.slot)));
        format!("{} from {begin}: {}", show::span(self.slot), figures.collect::<Vec<_>>().join(", "))
    }

    /// The sums of the chart, for who does not see it.
    fn in_words(&self) -> String {
        let sum = |at: usize| {
            let mut values = self.bars.iter().flatten().map(|bar| bar[at]);
            if self.is_level { values.next_back().unwrap_or(0) } else { values.sum::<u64>() }
        };
        let whole = self.slot * u32::try_from(self.bars.len()).unwrap_or(1);
        let figures = self.series.iter().enumerate();
        let figures = figures.map(|(at, series)| format!("{} {}", series.name, (self.written)(sum(at), whole)));
        format!("{}: {}", self.title, figures.collect::<Vec<_>>().join(", "))
    }
}
