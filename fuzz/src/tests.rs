//! The fuzzer fuzzed: what must fail fails, is found again, and becomes small.

use super::*;

#[global_allocator]
static METER: Meter = Meter;

fn failure(fuzz: &Fuzz, target: impl Fn(&[u8])) -> String {
    let result = quietly(|| assert!(fuzz.check(target) > 0));
    result.expect_err("the fuzzer must see this")
}

#[test]
fn a_target_that_must_fail_fails_with_a_small_input() {
    let text = failure(&Fuzz::new("canary").runs(2000), |input| {
        assert!(!input.windows(2).any(|pair| pair[0] == 7 && pair[1] > 3));
    });
    assert!(text.contains("canary: assertion failed"), "{text}");
    assert!(text.contains("POLYRAFT_FUZZ_SEED="), "{text}");
    assert!(text.contains("POLYRAFT_FUZZ_INPUT=0704 "), "{text}");
}

#[test]
fn an_appetite_is_a_failure() {
    let fuzz = Fuzz::new("appetite").memory_max(1 << 20);
    let runs = fuzz.check(|input| drop(vec![0u8; 1000 * input.len()]));
    assert_eq!(runs, 1000);
    let text = failure(&fuzz, |input| {
        if input.first() > Some(&200) {
            drop(vec![0u8; 2 << 20]);
        }
    });
    assert!(text.contains("bytes held at once"), "{text}");
}

#[test]
fn inputs_depend_on_name_and_seed_alone() {
    let one = Fuzz::new("one").example(*b"an example of some length");
    let again = one.clone().runs(3);
    let inputs = |fuzz: &Fuzz| (0..200).map(|seed| fuzz.input(seed)).collect::<Vec<_>>();
    assert_eq!(inputs(&one), inputs(&again));
    assert_ne!(
        inputs(&one),
        inputs(&Fuzz::new("two").example(*b"an example"))
    );
    let all = inputs(&one);
    let related = all
        .iter()
        .filter(|input| input.starts_with(b"an ex"))
        .count();
    assert!(
        (20..180).contains(&related),
        "{related} of 200 come from the example"
    );
    assert!(all.iter().any(|input| input.len() > 500), "some are long");
}

#[test]
fn the_environment_says_what_is_run() {
    let fuzz = Fuzz::new("plan").runs(9);
    let plan = |list: &[(&str, &str)]| {
        fuzz.plan(|name| {
            let found = list.iter().find(|(key, _)| name.ends_with(key));
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    assert_eq!(plan(&[]), Ok(Plan::Runs(0, 9)));
    assert_eq!(plan(&[("SEED", "5")]), Ok(Plan::Runs(5, 9)));
    let ten = Duration::from_secs(10);
    assert_eq!(
        plan(&[("SEED", "5"), ("SECONDS", "10")]),
        Ok(Plan::Time(5, ten))
    );
    assert!(matches!(plan(&[("SECONDS", "10")]), Ok(Plan::Time(_, time)) if time == ten));
    assert_eq!(plan(&[("INPUT", "0aFF")]), Ok(Plan::One(vec![10, 255])));
    for wrong in [
        ("INPUT", "0"),
        ("INPUT", "xy"),
        ("SEED", "-1"),
        ("SECONDS", "x"),
    ] {
        assert!(plan(&[wrong]).is_err(), "{wrong:?}");
    }
}

#[test]
fn an_empty_source_says_zero() {
    let mut source = Source::new(&[]);
    assert_eq!((source.byte(), source.word(), source.number()), (0, 0, 0));
    assert!(!source.flag() && !source.one_in(3));
    assert_eq!(source.bytes(20), b"");
    let mut source = Source::new(&[2, 9, 8, 0xFF, 3]);
    assert_eq!((source.bytes(5), source.number()), (&[9, 8][..], u64::MAX));
    assert_eq!((source.rest(), source.pick(&['a', 'b'])), (&[3][..], 'b'));
    assert!(source.is_empty());
}

#[test]
fn hexadecimal_there_and_back() {
    assert_eq!(from_hex(&to_hex(&[0, 15, 255])), Some(vec![0, 15, 255]));
}
