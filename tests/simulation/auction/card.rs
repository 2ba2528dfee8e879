//! One scenario as a picture: for each way of placing, the load of every cell, zone by zone, and how good that is.

use crate::measure::{Measured, time};
use crate::scenarios::Scenario;
use crate::svg::Svg;

const PANEL: (f64, f64) = (300.0, 100.0);
const GAP: f64 = 14.0;
const HEAD: f64 = 22.0;
/// Below the loads: five lines with a bar each.
const LINE: f64 = 14.0;
const LINES: f64 = 5.0;
const CARD: (f64, f64) = (3.0 * (PANEL.0 + GAP) + GAP, HEAD + 16.0 + PANEL.1 + LINES * LINE + 2.0 * GAP);
const LABEL: f64 = 170.0;
const BEFORE: &str = "#bbb";
const GROUND: &str = "#f3f3f3";
const ZONES: [&str; 3] = ["#4477aa", "#ee6677", "#228833"];

pub struct Card(Svg);

impl Card {
    pub fn new(scenario: &Scenario, runs: &[(&str, Measured)]) -> Card {
        let mut svg = Svg::default();
        svg.text((GAP, HEAD - 4.0), 13, &format!("{}: {}", scenario.name, scenario.about));
        for (column, (name, run)) in runs.iter().enumerate() {
            let x = GAP + column as f64 * (PANEL.0 + GAP);
            svg.group((x, HEAD), &panel(scenario, name, run));
        }
        Card(svg)
    }
}

/// One below the other.
pub fn sheet(cards: &[Card]) -> String {
    let mut svg = Svg::default();
    for (row, Card(card)) in cards.iter().enumerate() {
        svg.group((0.0, row as f64 * CARD.1), card);
    }
    svg.document(CARD.0, cards.len() as f64 * CARD.1)
}

fn panel(scenario: &Scenario, name: &str, run: &Measured) -> Svg {
    let mut svg = Svg::default();
    svg.text((0.0, 11.0), 11, &format!("{name}: {} placed, {} not", run.placed, run.failed));
    svg.rect((0.0, 16.0), PANEL, GROUND);
    loads(&mut svg, scenario, run);
    let [fewest, most] = [run.zones.0, run.zones.1];
    let part = |part: usize, all: usize| if all > 0 { part as f64 / all as f64 } else { 0.0 };
    let lines: [(String, f64); 5] = [
        (format!("spread of load {:.3}", run.spread), run.spread),
        (format!("evenness {:.3}", run.evenness), run.evenness),
        (format!("zones got {fewest} to {most}"), part(fewest, most)),
        (format!("lost with a cell {:.0} %", 100.0 * run.lost_with_cell), run.lost_with_cell),
        (
            format!("{} LRPs have none; rounds {}, {}", run.without, run.rounds, time(run.took)),
            part(run.failed, run.placed),
        ),
    ];
    for (row, (label, fraction)) in lines.iter().enumerate() {
        let y = 16.0 + PANEL.1 + 4.0 + row as f64 * LINE;
        svg.text((0.0, y + 10.0), 10, label);
        svg.rect((LABEL, y + 2.0), (PANEL.0 - LABEL, LINE - 5.0), GROUND);
        svg.rect((LABEL, y + 2.0), ((PANEL.0 - LABEL) * fraction.clamp(0.0, 1.0), LINE - 5.0), "#777");
    }
    svg
}

/// What was there before in grey, what was placed in the colour of the zone; full cells reach the top.
fn loads(svg: &mut Svg, scenario: &Scenario, run: &Measured) {
    let mut order: Vec<usize> = (0..scenario.cells.len()).collect();
    order.sort_by_key(|&at| (&scenario.cells[at].zone, scenario.cells[at].index));
    let step = PANEL.0 / order.len() as f64;
    let (mut before, mut placed) = (Vec::new(), vec![Vec::new(); ZONES.len()]);
    let height = |fraction: f64| 16.0 + PANEL.1 * (1.0 - fraction.clamp(0.0, 1.0));
    let mut zones: Vec<&str> = Vec::new();
    for (column, &at) in order.iter().enumerate() {
        let (x, (earlier, now)) = ((column as f64 + 0.5) * step, run.loads[at]);
        let zone = scenario.cells[at].zone.as_str();
        if zones.last() != Some(&zone) {
            zones.push(zone);
        }
        if earlier > 0.0 {
            before.push((x, height(0.0), height(earlier)));
        }
        if now > earlier {
            placed[(zones.len() - 1) % ZONES.len()].push((x, height(earlier), height(now)));
        }
    }
    let width = if step > 2.0 { step - 0.5 } else { step };
    svg.uprights(&before, width, BEFORE);
    for (lines, colour) in placed.iter().zip(ZONES) {
        svg.uprights(lines, width, colour);
    }
}
