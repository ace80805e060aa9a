//! What all runs of a folder say: medians, one block a row of the table, and rrq over each rival.
//!
//! Reads `ROW.SYSTEM.RUN.json` (of this program or of rrq-bench, which use the same names),
//! `systems.tsv` and `host.tsv`; writes `compare.json` there.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows in the order of the table.
const ROWS: [(&str, &str); 5] = [
    ("enqueue-8", "enqueue only, 8 queues, one job a request"),
    ("batch-8", "enqueue only, 8 queues, 64 jobs a request"),
    ("enqueue-1", "enqueue only, 1 queue, one job a request"),
    ("life-8", "whole life, 8 queues, one job a request"),
    ("life-1", "whole life, 1 queue, one job a request"),
];

/// Where the figures stand in the files.
const FIGURES: [&str; 11] = [
    "/enqueued_per_s",
    "/completed_per_s",
    "/enqueue_us/p50",
    "/enqueue_us/p99",
    "/end_to_end_us/p50",
    "/end_to_end_us/p99",
    "/server_cpu_us_per_job",
    "/client_cpu_us_per_job",
    "/bytes_written_per_job",
    "/redelivered_after_ack",
    "/lost",
];

/// Figures of one cell: of each, what every run said.
type Cell = BTreeMap<&'static str, Vec<f64>>;

/// Prints the table.
pub fn show(folder: &Path) -> Result<()> {
    let host = pairs(&folder.join("host.tsv"))?;
    let systems = pairs(&folder.join("systems.tsv"))?;
    for (name, value) in &host {
        println!("{name:12} {value}");
    }
    println!(
        "a job        latency from sending the enqueue to its confirmation, in whole lives to that of \
         the\n             ack; CPU of server and load; bytes that the server wrote to disk"
    );
    let mut rows = Map::new();
    for (row, title) in ROWS {
        let mut cells = Vec::new();
        for (system, version) in &systems {
            let cell = read(folder, row, system)?;
            if !cell.is_empty() {
                cells.push((system.as_str(), version.as_str(), cell));
            }
        }
        if !cells.is_empty() {
            println!("\n{title}");
            rows.insert(row.to_owned(), block(row, &cells));
        }
    }
    ensure!(
        !rows.is_empty(),
        "no run in {} has a figure",
        folder.display()
    );
    let object = |pairs: Vec<(String, String)>| {
        let values = pairs.into_iter().map(|(name, value)| (name, value.into()));
        Value::Object(values.collect())
    };
    let all = json!({ "host": object(host), "systems": object(systems), "rows": rows });
    let path = folder.join("compare.json");
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Prints the lines of one row; the same as JSON.
fn block(row: &str, cells: &[(&str, &str, Cell)]) -> Value {
    let is_life = row.starts_with("life");
    let (rate, times) = match is_life {
        true => ("/completed_per_s", "/end_to_end_us"),
        false => ("/enqueued_per_s", "/enqueue_us"),
    };
    let (p50, p99) = (format!("{times}/p50"), format!("{times}/p99"));
    let ours = cells.iter().find(|(system, ..)| *system == "rrq");
    let ours = ours.and_then(|(.., cell)| median(cell, rate));
    println!(
        "  {:30} {:>9} {:>17} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9}",
        "", "jobs/s", "least to most", "p50 ms", "p99 ms", "rrq is", "srv us", "load us", "B disk"
    );
    let mut json = Map::new();
    for (system, version, cell) in cells {
        let number = |figure: &str, digits: usize, scale: f64| match median(cell, figure) {
            Some(value) => format!("{:.digits$}", value * scale),
            None => "-".to_owned(),
        };
        let ratio = ours.zip(median(cell, rate)).map(|(ours, it)| ours / it);
        let shown = match ratio {
            Some(ratio) if *system != "rrq" => format!("{ratio:.1} x"),
            _ => String::new(),
        };
        let (least, most) = spread(cell, rate);
        println!(
            "  {:30} {:>9} {:>17} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9}",
            format!("{version}{}", note(system)),
            number(rate, 0, 1.0),
            format!("{least:.0} to {most:.0}"),
            number(&p50, 2, 1e-3),
            number(&p99, 2, 1e-3),
            shown,
            number("/server_cpu_us_per_job", 2, 1.0),
            number("/client_cpu_us_per_job", 2, 1.0),
            number("/bytes_written_per_job", 0, 1.0),
        );
        let wrong = ["/lost", "/redelivered_after_ack"];
        let wrong = wrong.map(|figure| cell.get(figure).map_or(0.0, |runs| runs.iter().sum()));
        if wrong != [0.0, 0.0] {
            println!(
                "  {:30} {} lost, {} came after their ack",
                "", wrong[0], wrong[1]
            );
        }
        let mut figures = Map::new();
        for figure in FIGURES {
            let name = figure[1..].replace('/', "_");
            figures.insert(name, median(cell, figure).into());
        }
        figures.insert("least_per_s".to_owned(), least.into());
        figures.insert("most_per_s".to_owned(), most.into());
        figures.insert("rrq_over_it".to_owned(), ratio.into());
        json.insert((*system).to_owned(), Value::Object(figures));
    }
    Value::Object(json)
}

/// What sets two systems of one program apart.
fn note(system: &str) -> &'static str {
    match system {
        "redis" => ", appendfsync always",
        "redis-unsynced" => ", not synced",
        _ => "",
    }
}

fn read(folder: &Path, row: &str, system: &str) -> Result<Cell> {
    let mut cell = Cell::new();
    for run in 1.. {
        let path = folder.join(format!("{row}.{system}.{run}.json"));
        if !path.exists() {
            // A run in the middle may have failed.
            if run > 99 {
                break;
            }
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let json: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        for figure in FIGURES {
            if let Some(value) = json.pointer(figure).and_then(Value::as_f64) {
                cell.entry(figure).or_default().push(value);
            }
        }
    }
    Ok(cell)
}

fn median(cell: &Cell, figure: &str) -> Option<f64> {
    let mut runs = cell.get(figure)?.clone();
    runs.sort_by(f64::total_cmp);
    let (low, high) = ((runs.len() - 1) / 2, runs.len() / 2);
    Some((runs[low] + runs[high]) / 2.0)
}

fn spread(cell: &Cell, figure: &str) -> (f64, f64) {
    let runs = cell.get(figure).map_or(&[][..], Vec::as_slice);
    let least = runs.iter().copied().reduce(f64::min);
    let most = runs.iter().copied().reduce(f64::max);
    (least.unwrap_or_default(), most.unwrap_or_default())
}

/// Lines of two columns.
fn pairs(path: &Path) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let pair = |line: &str| {
        let (name, value) = line.split_once('\t').context("a line without a tab")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    text.lines().map(pair).collect()
}
