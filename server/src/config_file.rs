//! Settings from a TOML file: tables and dotted keys alike become `a.b.c = value`.

use std::path::Path;

use millstream_common::{Error, Result};
use toml::Value;

/// The file cannot be read, or is no TOML.
pub const BAD_FILE: u16 = 1403;

/// Reads a file into pairs of key and value, in the order of the keys.
pub fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let place = path.display().to_string();
    let bad = |what: &str| Error::config(what).code(BAD_FILE).at(&place);
    let text = std::fs::read_to_string(path)
        .map_err(|e| bad("the configuration file cannot be read").next("give the path of a TOML file").source(e))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        // Its own text draws the line and a caret below it, on several lines.
        let line = e.span().map(|s| 1 + text.bytes().take(s.start).filter(|b| *b == b'\n').count());
        bad(&format!("the configuration file is no TOML: {}", e.message()))
            .at(line.map_or_else(|| place.clone(), |n| format!("{place} line {n}")))
            .next("write tables or dotted keys, as checkpoint.interval = \"500ms\"; docs/settings.md has the keys")
    })?;
    let mut pairs = Vec::new();
    for (key, value) in &table {
        flatten(key, value, &mut pairs).map_err(|e| e.at(&place))?;
    }
    Ok(pairs)
}

fn flatten(key: &str, value: &Value, into: &mut Vec<(String, String)>) -> Result<()> {
    let text = match value {
        Value::Table(table) => {
            for (name, inner) in table {
                flatten(&format!("{key}.{name}"), inner, into)?;
            }
            return Ok(());
        }
        Value::String(s) => s.clone(),
        Value::Integer(n) => n.to_string(),
        Value::Float(n) => n.to_string(),
        Value::Boolean(b) => b.to_string(),
        Value::Datetime(_) | Value::Array(_) => {
            let what = format!("'{key}' is neither text nor a number");
            return Err(Error::config(what).code(BAD_FILE).next("write a size or a duration in quotes: \"500ms\""));
        }
    };
    into.push((key.to_owned(), text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(String, String)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.toml");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn tables_and_dotted_keys_are_the_same() {
        let pairs = read_text(
            "restart.jitter = 0.5\n[checkpoint]\ninterval = \"500ms\"\nretained = 3\n[state.compaction]\ntrigger-runs = 8\n",
        );
        let mut pairs = pairs.unwrap();
        pairs.sort();
        let text: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "checkpoint.interval=500ms",
                "checkpoint.retained=3",
                "restart.jitter=0.5",
                "state.compaction.trigger-runs=8"
            ]
        );
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        for (text, place) in [("a = 1\n= 3", "f.toml line 2"), ("checkpoint.interval = [1, 2]", "f.toml")] {
            let e = read_text(text).unwrap_err();
            assert!(e.number() == BAD_FILE && e.place().ends_with(place) && !e.to_string().contains('|'), "{e}");
        }
        assert_eq!(read(Path::new("/nowhere/f.toml")).unwrap_err().number(), BAD_FILE);
    }
}
