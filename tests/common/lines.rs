//! Lines of a web server's log: the input of the tests that run the program.

use fastrand::Rng;

const AGENTS: [&str; 5] = [
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/32.0.1700.77 Safari/537.36",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:27.0) Gecko/20100101 Firefox/27.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "UniversalFeedParser/4.2-pre-314-svn +http://feedparser.org/",
    "-",
];
const PATHS: [&str; 6] =
    ["/", "/favicon.ico", "/style2.css", "/images/web/2009/banner.png", "/blog/tags/", "/presentations/logstash/"];

/// Lines to send: the file that `OUTLAST_TEST_INPUT` names, or `count` generated ones.
pub fn input_lines(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let Ok(file) = std::env::var("OUTLAST_TEST_INPUT") else { return log_lines(seed, count) };
    let text = std::fs::read(&file).unwrap_or_else(|e| panic!("OUTLAST_TEST_INPUT={file}: {e}"));
    text.strip_suffix(b"\n").unwrap_or(&text).split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// `count` lines in the combined log format, no two alike. The first field is the client's address: of 10,000 lines
/// about 1,700 different ones, the busiest with some 500 lines, as in a real log.
pub fn log_lines(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut rng = Rng::with_seed(seed);
    let clients: Vec<String> =
        (0..CLIENTS).map(|n| format!("{}.{}.{}.{}", rng.u8(1..224), rng.u8(..), n >> 8, n & 255)).collect();
    let shares = cumulative_shares();
    (0..count)
        .map(|number| {
            let draw = rng.f64() * shares[CLIENTS - 1];
            let client = &clients[shares.partition_point(|share| *share < draw).min(CLIENTS - 1)];
            let (day, hour, minute, second) = (17 + number / 2500 % 14, number / 100 % 24, number / 60 % 60, number % 60);
            let path = rng.choice(PATHS).unwrap_or("/");
            let agent = rng.choice(AGENTS).unwrap_or("-");
            let (status, bytes) = (*rng.choice(&[200, 200, 200, 304, 404]).unwrap_or(&200), rng.u32(100..250_000));
            format!(
                "{client} - - [{day}/May/2015:{hour:02}:{minute:02}:{second:02} +0000] \"GET {path}?n={number} HTTP/1.1\" \
                 {status} {bytes} \"-\" \"{agent}\""
            )
            .into_bytes()
        })
        .collect()
}

/// The first blank-separated field: the client's address, the key of `--key field:1`.
pub fn first_field(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b' ').next().unwrap_or_default()
}

/// How many clients there are to draw from.
const CLIENTS: usize = 2_400;

/// Client `n` gets a share of `n^-0.8`.
fn cumulative_shares() -> Vec<f64> {
    let mut sum = 0.0;
    (1..=CLIENTS)
        .map(|rank| {
            sum += (rank as f64).powf(-0.8);
            sum
        })
        .collect()
}
