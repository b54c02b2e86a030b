//! `outlast repair`: says what would put a damaged outbox in order, and does it with `--yes`.

use outlast::admin::{self, Action, Concerned, Repair, Step};

use crate::args;
use crate::check;
use crate::exit::{Exit, Problem};
use crate::output::{self, count};

/// Plans or acts; refused while a producer has the outbox.
pub fn run(args: &args::Repair) -> Result<Exit, Problem> {
    let (outbox, wait) = (&args.outbox, args.lock.lock_wait);
    let repair = if args.yes { admin::repair_with(outbox, wait) } else { admin::plan_repair_with(outbox, wait) };
    let repair = repair.map_err(Problem::failed)?;
    if args.json {
        output::json(&repair)?;
    } else {
        for line in in_words(&repair) {
            output::line(&line)?;
        }
    }
    let well =
        if repair.done { !repair.report.is_damaged() } else { repair.steps.is_empty() && !repair.report.is_damaged() };
    Ok(if well { Exit::Done } else { Exit::Failed })
}

fn in_words(repair: &Repair) -> Vec<String> {
    let mut lines: Vec<String> = repair.steps.iter().map(|step| in_one_line(step, repair.done)).collect();
    if lines.is_empty() {
        lines.push("nothing to do".into());
    }
    if !repair.remaining.is_empty() {
        lines.push("nothing can be done here about:".into());
        lines.extend(repair.remaining.iter().flat_map(check::in_words));
    }
    if repair.done {
        lines.extend(check::sum(&repair.report));
    } else if !repair.steps.is_empty() {
        lines.push("nothing was changed; --yes does it".into());
    }
    lines
}

fn in_one_line(step: &Step, done: bool) -> String {
    let (past, future) = match step.action {
        Action::WriteIdentity => ("written anew from the segments", "write it anew from the segments"),
        Action::PutBack => ("put back under its own name", "put it back under its own name"),
        Action::MoveAside => ("moved to damaged/", "move it to damaged/"),
        Action::SetAside => ("copied to damaged/ and given up", "copy it to damaged/ and give it up"),
        Action::MoveOn => ("the log moved on to a new segment", "have the log move on to a new segment"),
        _ => ("done", "do"),
    };
    let mut text = format!("{}: {}: {}", step.path.display(), step.why, if done { past } else { future });
    if let Concerned::Range { first, last } = step.lsns
        && step.lost > 0
    {
        text.push_str(&format!("; {}, {} messages lost", check::range(first, last), count(step.lost)));
    }
    text
}
