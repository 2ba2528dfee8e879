//! `simulate-auction FOLDER`: places work on cells of many kinds and sizes, by the published algorithm, by best fit and at
//! random, in this process; then on reps that are processes of their own, through the product's auctioneer and reps. Prints
//! a report, and draws it into FOLDER. Ends with 1 if the processes place otherwise than this one.
//!
//! `simulate-auction rep INDEX ZONE`: one such rep, until its input ends.

mod card;
mod measure;
mod placers;
mod processes;
mod scenarios;
mod svg;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use measure::Measured;
use placers::Placer;
use scenarios::Scenario;

const REPS: usize = 24;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["rep", index, zone] => processes::rep(index.parse().unwrap_or(0), zone).map(|()| true),
        [folder] => report(Path::new(folder)),
        _ => {
            eprintln!("simulate-auction FOLDER | simulate-auction rep INDEX ZONE");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot simulate auctions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether processes placed as this one does.
fn report(folder: &Path) -> io::Result<bool> {
    std::fs::create_dir_all(folder)?;
    let mut report = Report::default();
    for scenario in scenarios::all() {
        report.add(&scenario, Placer::ALL.map(|placer| (placer.name(), placer.run(&scenario))).into());
    }
    let (scenario, rivalry) = (scenarios::on_reps(REPS), scenarios::on_few_reps());
    let here = Placer::Published.run(&scenario);
    let there = processes::run(&scenario, 1)?;
    let same = here.holdings == there.holdings;
    report.add(&scenario, vec![("in one process", here), ("processes", there)]);
    let (one, two) = (processes::run(&rivalry, 1)?, processes::run(&rivalry, 2)?);
    report.add(&rivalry, vec![("one auctioneer", one), ("two auctioneers", two)]);
    report.text += match same {
        true => "Processes hold what was placed in one process, instance by instance.\n",
        false => "PROCESSES HOLD SOMETHING ELSE THAN WAS PLACED IN ONE PROCESS.\n",
    };
    print!("{}", report.text);
    std::fs::write(folder.join("report.txt"), &report.text)?;
    std::fs::write(folder.join("report.svg"), card::sheet(&report.cards))?;
    for (name, card) in report.names.iter().zip(&report.cards) {
        std::fs::write(folder.join(format!("{name}.svg")), card::sheet(std::slice::from_ref(card)))?;
    }
    println!("drawn in {}", folder.join("report.svg").display());
    Ok(same)
}

#[derive(Default)]
struct Report {
    text: String,
    names: Vec<&'static str>,
    cards: Vec<card::Card>,
}

impl Report {
    fn add(&mut self, scenario: &Scenario, runs: Vec<(&'static str, Measured)>) {
        self.text += &measure::table(scenario, &runs);
        self.names.push(scenario.name);
        self.cards.push(card::Card::new(scenario, &runs));
    }
}
