use super::*;

fn with(pairs: &[(&str, &str)]) -> Result<Settings> {
    let mut settings = Settings::defaults();
    for (key, value) in pairs {
        settings.set(key, value)?;
    }
    settings.validate()?;
    Ok(settings)
}

#[test]
fn the_defaults_are_valid_and_are_those_of_the_contract() {
    let s = Settings::defaults();
    s.validate().unwrap();
    assert_eq!(s.checkpoint.interval, Duration::from_secs(1));
    assert_eq!(s.checkpoint.timeout, Duration::from_secs(600));
    assert_eq!((s.checkpoint.tolerable_failures, s.checkpoint.retained), (10, 10));
    assert_eq!((s.restart.initial_delay, s.restart.max_delay), (Duration::from_secs(1), Duration::from_secs(60)));
    assert_eq!(s.object_store.retry_timeout, Duration::from_secs(180));
    assert_eq!((s.cache.memory_bytes, s.memory.limit_bytes), (None, None));
    assert_eq!(s.state.block_size_bytes, 15 << 10);
}

#[test]
fn the_state_store_has_the_same_defaults() {
    let (ours, its) = (Settings::defaults().state_store_options(), StateStoreOptions::default());
    assert_eq!(ours.section.block_bytes, its.section.block_bytes);
    assert_eq!(ours.compaction.trigger_runs, its.compaction.trigger_runs);
    assert_eq!(ours.compaction.output_bytes, its.compaction.output_bytes);
}

#[test]
fn every_setting_shows_what_it_reads() {
    let s = Settings::defaults();
    for def in SETTINGS {
        assert_eq!((def.get)(&s), def.default, "{}", def.key);
    }
    let values = [
        ("checkpoint.interval", "1500ms"),
        ("checkpoint.mode", "at-least-once"),
        ("restart.strategy", "failure-rate"),
        ("restart.backoff-multiplier", "2.25"),
        ("state.residency", "local"),
        ("state.compaction.where", "compactors"),
        ("state.compaction.schedule", "22:30-06:00"),
        ("state.compaction.bytes-per-second", "20MiB"),
        ("cache.memory", "64MiB"),
        ("cache.dir", "/fast/w1"),
        ("cache.disk", "0"),
        ("memory.limit", "20GB"),
        ("watermark.idle-timeout", "250us"),
    ];
    let mut s = Settings::defaults();
    for (key, value) in values {
        s.set(key, value).unwrap();
        assert_eq!(s.get(key).unwrap(), value);
    }
}

#[test]
fn a_part_of_the_day_may_go_over_midnight() {
    let window = |text: &str| {
        let mut s = Settings::defaults();
        s.set("state.compaction.schedule", text).map(|()| s.state.compaction_schedule)
    };
    let at = |hours: i64, minutes: i64| (20_000 * 24 * 60 + hours * 60 + minutes) * 60_000;
    let night = window("22:00-06:00").unwrap().unwrap();
    assert!(night.holds(at(22, 0)) && night.holds(at(23, 59)) && night.holds(at(0, 0)) && night.holds(at(5, 59)));
    assert!(!night.holds(at(6, 0)) && !night.holds(at(21, 59)));
    let noon = window("11:30-13:00").unwrap().unwrap();
    assert!(noon.holds(at(11, 30)) && !noon.holds(at(13, 0)) && !noon.holds(at(0, 0)) && noon.holds(at(-12, 30)));
    assert!(window("20:00-24:00").unwrap().unwrap().holds(at(23, 59)));
    assert_eq!(window("always").unwrap(), None);
    for text in ["", "22:00", "22-06", "06:00-06:00", "00:00-24:00", "25:00-06:00", "22:60-23:00", "2:00-3:00", "never"]
    {
        assert_eq!(window(text).unwrap_err().number(), MALFORMED_SETTING, "{text}");
    }
}

#[test]
fn keys_are_unique_and_sorted_by_prefix() {
    let mut keys: Vec<_> = SETTINGS.iter().map(|d| d.key).collect();
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let mut prefixes: Vec<_> = SETTINGS.iter().map(|d| d.key.split('.').next()).collect();
    prefixes.dedup();
    let count = prefixes.len();
    prefixes.sort_unstable();
    prefixes.dedup();
    assert_eq!(prefixes.len(), count, "settings of one prefix stand together");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let e = with(&[("checkpont.interval", "1s")]).unwrap_err();
    assert_eq!(e.number(), UNKNOWN_SETTING);
    assert!(e.to_string().contains("'checkpont.interval'") && e.to_string().contains("checkpoint.interval;"), "{e}");
    let e = with(&[("object-store.inject", "1s")]).unwrap_err();
    assert!(e.advice().contains("object-store."), "{e}");
}

#[test]
fn malformed_values_name_key_and_value() {
    for (key, value) in [
        ("checkpoint.interval", "four"),
        ("checkpoint.retained", "-1"),
        ("cache.memory", "lots"),
        ("restart.jitter", "NaN"),
        ("checkpoint.mode", "twice"),
        ("checkpoint.alignment-timeout", "never"),
    ] {
        let e = with(&[(key, value)]).unwrap_err();
        assert_eq!(e.number(), MALFORMED_SETTING, "{e}");
        assert!(e.what().contains(key) && e.what().contains(value) && !e.advice().is_empty(), "{e}");
    }
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    for (key, value) in [
        ("checkpoint.mode", "at-least-once"),
        ("checkpoint.max-concurrent", "2"),
        ("checkpoint.alignment-timeout", "1s"),
        ("restart.strategy", "fixed-delay"),
        ("restart.strategy", "failure-rate"),
    ] {
        let e = with(&[(key, value)]).unwrap_err();
        assert_eq!(e.number(), NOT_BUILT_YET, "{e}");
        assert!(e.to_string().contains(key) && e.to_string().contains("not built yet"), "{e}");
    }
}

#[test]
fn contradictions_are_refused() {
    for pairs in [
        &[("restart.initial-delay", "2min")][..],
        &[("heartbeat.interval", "4s")],
        &[("checkpoint.timeout", "0")],
        &[("memory.limit", "1MiB")],
        &[("memory.limit", "400MiB"), ("cache.memory", "300MiB")],
        &[("state.block-size", "2MiB")],
        &[("object-store.backoff-initial", "20s")],
    ] {
        let e = with(pairs).unwrap_err();
        assert_eq!(e.number(), CONTRADICTION, "{pairs:?}: {e}");
    }
    with(&[("memory.limit", "400MiB"), ("cache.memory", "64MiB")]).unwrap();
}

#[test]
fn a_job_carries_its_settings_and_no_other() {
    let s = with(&[("checkpoint.interval", "200ms"), ("cache.memory", "64MiB")]).unwrap();
    let map = s.job_map();
    assert_eq!(map["checkpoint.interval"], "200ms");
    assert!(!map.contains_key("cache.memory"));
    let back = Settings::from_job_map(&map).unwrap();
    assert_eq!(back.checkpoint, s.checkpoint);
    assert_eq!(back.cache, CacheSettings::default());
    let e = refuse_for_job("cache.memory").unwrap_err();
    assert!(e.number() == NOT_A_JOB_SETTING && e.advice().contains("--cache-memory"), "{e}");
    let foreign = BTreeMap::from([("memory.limit".to_owned(), "1GiB".to_owned())]);
    assert!(Settings::from_job_map(&foreign).is_err());
}
