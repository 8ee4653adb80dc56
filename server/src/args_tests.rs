use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn refused(line: &str) -> String {
    parse(line).expect_err(line).to_string()
}

#[test]
fn the_definitions_are_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_is_understood() {
    for line in [
        "millstream run nexmark-q0",
        "millstream run nexmark-q5 -p 2 --state file:///tmp/s --checkpoint-interval 200ms --summary s.json -- --input a.gz b.gz --rate 100 --output files:out",
        "millstream run keyed-count -p 2 --cache-memory 64MiB --cache-disk 0 --memory-limit 400MiB -D object-store.inject-latency=30ms -- --keys 10",
        "millstream run nexmark-q17 --name other --residency remote --cache-dir /fast --from none --discard-state --config f.toml --json",
        "millstream run nexmark-q17 --from 17",
        "millstream coordinator --state s3://bucket/cluster --listen 127.0.0.1:6123",
        "millstream coordinator --state file:///x --listen 0.0.0.0:6123 --advertise host:6123 --insecure",
        "millstream worker --coordinator 127.0.0.1:6123,127.0.0.1:6124 --slots 2 --cache-dir /fast/w1 --listen 127.0.0.1:0",
        "millstream submit nexmark-q5 -p 2 --coordinator 127.0.0.1:1 -- --events 0 --rate 20000 --output files:out",
        "millstream list --json",
        "millstream list --state file:///x",
        "millstream --json list --coordinator 127.0.0.1:6123",
        "millstream status j1 --json",
        "millstream checkpoint j1 --no-wait",
        "millstream rescale j1 -p 4 --coordinator 127.0.0.1:6123",
        "millstream cancel j1",
        "millstream stop j1 --drain",
        "millstream jobs",
        "millstream fsck --state file:///x",
        "millstream versions nexmark-q5 --state file:///x --json",
        "millstream versions j1 --coordinator 127.0.0.1:6123",
        "millstream settings --markdown",
        "millstream savepoint j1 --to s3://x",
    ] {
        if let Err(e) = parse(line) {
            panic!("{line}: {e}");
        }
    }
}

#[test]
fn job_arguments_are_left_alone() {
    let cli = parse("millstream run nexmark-q5 -p 3 -- --events 0 -p 7 --json").unwrap();
    let Command::Run(run) = cli.command else { panic!("not run") };
    assert!(!cli.json);
    assert_eq!(run.job.parallelism, Some(3));
    assert_eq!(run.job.job_args, ["--events", "0", "-p", "7", "--json"]);
    assert_eq!(run.job.from, "latest");
}

#[test]
fn definitions_keep_their_order() {
    let cli = parse("millstream run j -D a.b=1 -Dc.d=x=y -D a.b=2").unwrap();
    let Command::Run(run) = cli.command else { panic!("not run") };
    let pairs: Vec<_> = run.job.settings.define.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    assert_eq!(pairs, ["a.b:1", "c.d:x=y", "a.b:2"]);
}

#[test]
fn wrong_usage_is_refused_in_words_that_help() {
    assert!(refused("millstream run nexmark-q5 -p 0").contains("parallelism"));
    assert!(refused("millstream run nexmark-q5 --paralelism 3").contains("paralel"));
    assert!(refused("millstream rescale j1").contains("parallelism"));
    assert!(refused("millstream run j --name _cluster").contains("does not begin with '_'"));
    assert!(refused("millstream run j --name a/b").contains("letters, digits"));
    assert!(refused("millstream run j --name ..").contains("dots"));
    assert!(refused("millstream run j --from yesterday").contains("latest, none"));
    assert!(refused("millstream run j -D nothing").contains("KEY=VALUE"));
    assert!(refused("millstream worker --slots 0").contains("slots"));
    assert!(refused("millstream list --state file:///x --coordinator a:1").contains("cannot be used"));
    for command in ["worker", "list", "status j1", "submit j"] {
        assert!(refused(&format!("millstream {command} --coordinator foo")).contains("HOST:PORT"), "{command}");
        assert!(refused(&format!("millstream {command} --coordinator 127.0.0.1:99999")).contains("99999"), "{command}");
    }
    assert!(refused("millstream worker --listen foo").contains("'foo' has no port"));
    assert!(refused("millstream coordinator --state file:///x --listen 1.2.3.4:x").contains("no port"));
    assert!(refused("millstream worker --metrics-listen here").contains("HOST:PORT"));
    assert!(refused("millstream worker --advertise a/b").contains("HOST:PORT"));
    assert!(refused("millstream run j --metrics-listen none").contains("HOST:PORT"));
}
