//! The readme's quick start, pasted into a fresh project, keeps its word on a real broker: killed in an outage and
//! started again, it delivers every order that it said it had taken.

#![cfg(feature = "kafka")]

mod common;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use common::{KafkaServer, seed};
use tempfile::TempDir;

const README: &str = include_str!("../README.md");
const CUSTOMERS: usize = 7;
const ORDERS: usize = 300;
/// For one thing to happen; generous, since the machine is shared with a broker that starts.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_readmes_quick_start_loses_nothing_when_it_is_killed_in_an_outage() {
    let mut rng = fastrand::Rng::with_seed(seed("quick start"));
    let program = build();
    let server = KafkaServer::up();
    common::kafka::create_topic(server.address(), "orders", 4);
    let dir = TempDir::new().unwrap();
    let url = format!("kafka://{}", server.address());
    let orders: Vec<String> = (0..ORDERS).map(|number| format!("cust-{} order {number}", number % CUSTOMERS)).collect();

    // All is well; then the broker dies, and later the program, with orders on their way.
    let third = ORDERS / 3;
    let mut run = Run::start(&program, &url, dir.path(), 0);
    run.feed(&orders[..third]);
    run.wait_for(third);
    assert!(run.taken().iter().all(|taken| taken.delivered), "{}", run.printed());
    server.kill();
    run.feed(&orders[third..]);
    run.wait_for(third + 1 + rng.usize(..third));
    run.kill();
    let before = run.taken();
    assert!(before.iter().any(|taken| !taken.delivered), "nothing was stored: there was no outage");
    println!("killed after {} orders, {} of them delivered", before.len(), count_delivered(&before));

    // Broker and program are back; the customer sends what was not confirmed.
    server.start();
    let mut run = Run::start(&program, &url, dir.path(), 1);
    run.feed(&orders[before.len()..]);
    run.finish();
    let taken: Vec<String> = before.into_iter().chain(run.taken()).map(|taken| taken.order).collect();
    assert_eq!(taken, orders, "each order is confirmed once, in the order of the input");
    assert!(!run.printed().contains("pending"), "{}", run.printed());

    compare(&orders, server.address());
}

fn compare(orders: &[String], broker: &str) {
    let mut seen = HashSet::new();
    // Partition by partition: a customer's records are in the order in which they were appended.
    let records = common::kafka::read_all(broker, "orders");
    let arrived = records.len();
    let mut firsts: Vec<String> = Vec::new();
    for record in records {
        let order = String::from_utf8(record.payload.expect("a payload")).expect("text");
        assert_eq!(record.key.as_deref(), order.split(' ').next().map(str::as_bytes));
        assert!(record.id.is_some(), "{order} came without an id");
        if seen.insert(order.clone()) {
            firsts.push(order);
        }
    }
    println!("{arrived} arrived, {} of them again", arrived - firsts.len());
    for customer in 0..CUSTOMERS {
        let prefix = format!("cust-{customer} ");
        let of_customer = |order: &&String| order.starts_with(&prefix);
        let expected: Vec<&String> = orders.iter().filter(of_customer).collect();
        assert_eq!(firsts.iter().filter(of_customer).collect::<Vec<_>>(), expected, "all that was taken, in order");
    }
}

/// Makes the project that the readme describes, and builds it. Returns the program.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp is in target");
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quickstart");
    let _ = fs::remove_dir_all(&project);
    cargo(Command::new(env!("CARGO")).args(["new", "--offline", "--quiet", "--vcs", "none"]).arg(&project));
    let dependencies = block("toml").replace("../outlast", root.to_str().expect("a path in UTF-8"));
    assert!(dependencies.starts_with("[dependencies]"), "{dependencies}");
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    fs::write(project.join("Cargo.toml"), manifest.replace("[dependencies]\n", &dependencies)).unwrap();
    fs::write(project.join("src/main.rs"), block("rust")).unwrap();
    // What follows changes nothing but the time it takes: the versions that are here already, and this crate's own
    // compiled C libraries, which are only taken for the same features and profile.
    fs::copy(root.join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--offline", "--quiet", "--features", "outlast/tls,outlast/zstd"]);
    for setting in [r#"debug="line-tables-only""#, r#"package."*".opt-level=1"#, r#"package."*".debug=false"#] {
        command.arg("--config").arg(format!("profile.dev.{setting}"));
    }
    cargo(command.env("CARGO_TARGET_DIR", target).current_dir(&project));
    target.join("debug/quickstart")
}

fn cargo(command: &mut Command) {
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The first block of a language in the readme's quick start.
fn block(language: &str) -> String {
    let section = README.split("\n## ").find(|section| section.starts_with("Quick start")).expect("a quick start");
    let mut lines = section.lines().skip_while(|line| !line.starts_with(&format!("```{language}"))).skip(1);
    let code: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
    assert!(!code.is_empty(), "the quick start has no {language}");
    code.join("\n") + "\n"
}

/// An order that the program says it has taken.
struct Taken {
    order: String,
    delivered: bool,
}

fn count_delivered(taken: &[Taken]) -> usize {
    taken.iter().filter(|taken| taken.delivered).count()
}

/// A run of the program; killed when this is dropped.
struct Run {
    process: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Run {
    fn start(program: &Path, url: &str, dir: &Path, number: u32) -> Self {
        let log = dir.join(format!("run-{number}.log"));
        let file = File::create(&log).unwrap();
        let mut process = Command::new(program)
            .arg(url)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { stdin: process.stdin.take(), process, log }
    }

    /// Types orders; they fit into a pipe, so this does not wait.
    fn feed(&mut self, orders: &[String]) {
        let text: String = orders.iter().map(|order| format!("{order}\n")).collect();
        assert!(text.len() < 16 << 10);
        self.stdin.as_mut().expect("its input is open").write_all(text.as_bytes()).unwrap();
    }

    fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it said in whole lines: half a line was not said.
    fn taken(&self) -> Vec<Taken> {
        let printed = self.printed();
        let complete = printed.rfind('\n').map_or("", |end| &printed[..end]);
        let taken = |line: &str| {
            let (state, order) = line.split_once(": ")?;
            Some(Taken { order: order.to_owned(), delivered: state.starts_with("delivered at ") })
        };
        complete.lines().filter_map(taken).filter(|taken| taken.order.starts_with("cust-")).collect()
    }

    fn wait_for(&mut self, count: usize) {
        let start = Instant::now();
        while self.taken().len() < count {
            let running = self.process.try_wait().unwrap().is_none();
            let waiting = running && start.elapsed() < LIMIT;
            assert!(waiting, "{count} orders were not taken; running: {running}; it printed:\n{}", self.printed());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends its input and waits until it is done.
    fn finish(&mut self) {
        self.stdin = None;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LIMIT, "it does not end; it printed:\n{}", self.printed());
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", self.printed());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
