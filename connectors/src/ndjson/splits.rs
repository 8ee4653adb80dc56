//! Which files patterns stand for: one file, one split.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use millstream_engine::source::{Discovery, Split, SplitEnumerator};

/// Finds the files of patterns. All are there when it is asked first; no file comes later.
pub(super) struct FileEnumerator {
    pub(super) patterns: Vec<String>,
}

impl SplitEnumerator for FileEnumerator {
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>> {
        let found = splits(&self.patterns)
            .map(|all| Discovery { new: all.into_iter().filter(|s| !known.contains(&s.id)).collect(), complete: true });
        Box::pin(std::future::ready(found))
    }
}

/// The splits of `patterns`, in the order of the patterns and then of the paths.
pub(super) fn splits(patterns: &[String]) -> Result<Vec<Split>> {
    if patterns.is_empty() {
        return Err(Error::config("no input file is named").code(1305).next("name files or patterns"));
    }
    let common = common_folder(patterns);
    // The files so far, and by which name each was asked for when it was asked for by name.
    let mut seen: BTreeMap<PathBuf, Option<&str>> = BTreeMap::new();
    let mut splits = Vec::new();
    for pattern in patterns {
        let (files, by_name) = expand(pattern)?;
        for path in files {
            let real = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if let Some(before) = seen.get_mut(&real) {
                match (*before, by_name) {
                    (Some(other), true) => return Err(named_twice(pattern, other)),
                    // A file that several patterns match is read once.
                    (None, true) => *before = Some(pattern),
                    _ => {}
                }
                continue;
            }
            seen.insert(real, by_name.then_some(pattern));
            let text = path.to_str().ok_or_else(|| {
                Error::config("the name of an input file is not UTF-8").code(1306).at(path.display().to_string())
            })?;
            let short = path.strip_prefix(&common).ok().and_then(Path::to_str).filter(|s| !s.is_empty());
            splits.push(Split { id: short.unwrap_or(text).to_owned(), payload: text.as_bytes().to_vec() });
        }
    }
    Ok(splits)
}

fn named_twice(name: &str, other: &str) -> Error {
    let what = if name == other {
        "an input file is named twice".to_owned()
    } else {
        format!("an input file is named twice, as {other} before")
    };
    Error::config(what).code(1311).at(name).next("name each file once: it is read once")
}

/// The files that `pattern` stands for, sorted, and whether it is the name of one.
fn expand(pattern: &str) -> Result<(Vec<PathBuf>, bool)> {
    let literal = PathBuf::from(pattern);
    match std::fs::metadata(&literal) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::config("the input is a folder, not a file")
                .code(1307)
                .at(pattern)
                .next(format!("name its files: '{}/*.ndjson'", pattern.trim_end_matches('/'))));
        }
        Ok(_) => return Ok((vec![literal], true)),
        Err(e) if !is_pattern(pattern) => {
            return Err(Error::config("there is no such input file").code(1304).at(pattern).source(e));
        }
        Err(_) => {}
    }
    let bad = |e: String| Error::config("the pattern for input files is not one").code(1308).at(pattern).source(e);
    let mut files = Vec::new();
    for path in glob::glob(pattern).map_err(|e| bad(e.to_string()))? {
        let path = path.map_err(|e| bad(e.to_string()))?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::config("no input file matches the pattern").code(1304).at(pattern));
    }
    files.sort();
    Ok((files, false))
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The deepest folder that all patterns lie in, whatever they match: names below it are unique, and they stay the same
/// when other files come or go.
fn common_folder(patterns: &[String]) -> PathBuf {
    let folder_of = |pattern: &String| -> Vec<PathBuf> {
        let path = Path::new(pattern);
        // A file that exists may have a star in its name: what counts is the same as in `expand`, as it was typed.
        let parts: Vec<Component<'_>> = path.components().collect();
        let plain = parts.iter().take_while(|c| !c.as_os_str().to_str().is_some_and(is_pattern)).count();
        parts[..plain.min(parts.len().saturating_sub(1))].iter().map(|c| PathBuf::from(c.as_os_str())).collect()
    };
    let mut folders = patterns.iter().map(folder_of);
    let mut common = folders.next().unwrap_or_default();
    for folder in folders {
        let same = common.iter().zip(&folder).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    common.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(patterns: &[String]) -> Vec<String> {
        splits(patterns).unwrap().into_iter().map(|s| s.id).collect()
    }

    #[test]
    fn files_and_patterns_become_splits_with_short_stable_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for folder in ["a", "b"] {
            std::fs::create_dir(at(folder)).unwrap();
            for file in ["2.ndjson", "1.ndjson.gz", "1[x].ndjson"] {
                std::fs::write(at(&format!("{folder}/{file}")), "").unwrap();
            }
        }
        assert_eq!(ids(&[at("a/2.ndjson")]), ["2.ndjson"]);
        assert_eq!(ids(&[at("a/1[x].ndjson")]), ["1[x].ndjson"]);
        assert_eq!(ids(&[at("a/*.ndjson")]), ["1[x].ndjson", "2.ndjson"]);
        assert_eq!(ids(&[at("a/2.ndjson"), at("a/*")]), ["2.ndjson", "1.ndjson.gz", "1[x].ndjson"]);
        assert_eq!(ids(&[at("b/2.ndjson"), at("a/2.ndjson")]), ["b/2.ndjson", "a/2.ndjson"]);
        assert_eq!(ids(&[at("*/2.ndjson")]), ["a/2.ndjson", "b/2.ndjson"]);
        assert_eq!(ids(&[at("a/*"), at("a/2.ndjson")]), ["1.ndjson.gz", "1[x].ndjson", "2.ndjson"]);
        // A file that comes later renames no other.
        std::fs::create_dir(at("c")).unwrap();
        std::fs::write(at("c/2.ndjson"), "").unwrap();
        assert_eq!(ids(&[at("*/2.ndjson")]), ["a/2.ndjson", "b/2.ndjson", "c/2.ndjson"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (pattern, word) in [("nowhere.ndjson", "nowhere.ndjson"), ("none-*.gz", "none-*.gz"), ("", "folder")] {
            let error = splits(&[at(pattern)]).unwrap_err();
            assert_eq!(error.kind(), millstream_common::ErrorKind::Config);
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(splits(&[]).is_err());
    }

    #[test]
    fn a_file_that_is_named_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("a.ndjson"), "").unwrap();
        std::fs::write(at("b.ndjson"), "").unwrap();
        for again in ["a.ndjson", "./a.ndjson"] {
            let error = splits(&[at("a.ndjson"), at("*.ndjson"), at("b.ndjson"), at(again)]).unwrap_err();
            assert!(error.number() == 1311 && error.place() == at(again), "{error}");
        }
    }
}
