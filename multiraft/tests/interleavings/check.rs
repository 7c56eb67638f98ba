//! Runs a test under many schedules.

use std::path::PathBuf;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Schedules are the same in every run of the tests.
const SEED: u64 = 20_261_121;
/// Changes of priority in a schedule of PCT: as many as most races need, and some more.
const DEPTH: usize = 4;
/// Steps after which a run that should have ended is taken for one that never does.
const STEPS_MAX: usize = 400_000;
/// The core in a debug build needs more than shuttle's 60 KiB.
const STACK_BYTES: usize = 1 << 20;

/// Runs `test` under so many schedules of either kind: random ones, where everybody is about
/// equally fast, and those of PCT, where somebody is as slow as can be.
pub(crate) fn check(schedules: usize, test: impl Fn() + Send + Sync + Copy + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    let failures = option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from);
    config.failure_persistence =
        FailurePersistence::File(Some(failures.unwrap_or_else(std::env::temp_dir)));
    // What the test leaves behind when it fails waits for time that passes no more.
    config
        .ungraceful_shutdown_config
        .immediately_return_on_panic = true;
    if let Some(schedule) = std::env::var_os("REPLAY") {
        return shuttle::replay_from_file(test, PathBuf::from(schedule));
    }
    let times = std::env::var("TIMES").map_or(1, |times| times.parse().expect("TIMES is a number"));
    let schedules = schedules * times;
    let random = RandomScheduler::new_from_seed(SEED, schedules);
    Runner::new(random, config.clone()).run(test);
    let pct = PctScheduler::new_from_seed(SEED, DEPTH, schedules);
    Runner::new(pct, config).run(test);
}
