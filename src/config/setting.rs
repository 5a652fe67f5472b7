//! Every key as an operator sees it: its value, its allowed values and its source.

use super::check::Layers;
use super::check::Source;
use super::key::{self, Kind};
use super::model::Config;
use super::raw::SHIPPED;
use super::show::{bare, entries};
use serde::Serialize;
use std::collections::BTreeMap;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Section and key.
    pub key: String,
    /// The value in effect; hidden if it is secret.
    pub value: String,
    /// The unit of a number, or nothing.
    pub unit: &'static str,
    /// The allowed values, to follow "must be".
    pub allowed: String,
    /// The smallest number of a range.
    pub min: Option<i64>,
    /// The largest number of a range.
    pub max: Option<i64>,
    /// The default.
    pub default: String,
    /// Where the value comes from: `override`, `flag`, `environment`, `file` or `default`.
    pub source: &'static str,
    /// An operator's change that is kept but has no effect because of the current file. It takes effect
    /// again as soon as it is allowed, until it is undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overtaken: Option<String>,
    /// Whether it can change while the server runs.
    pub at_run_time: bool,
    /// The purpose of the key.
    pub description: String,
}

impl Setting {
    /// Returns whether it differs from its default, or an operator has changed it.
    pub fn is_changed(&self) -> bool {
        self.value != self.default || self.source == "override" || self.overtaken.is_some()
    }

    /// Returns whether the description contains the allowed range, so that it need not be repeated.
    pub fn says_its_range(&self) -> bool {
        let range = self.min.zip(self.max).map(|(min, max)| format!("{min} to {max}"));
        range.is_some_and(|range| self.description.contains(&range))
    }
}

/// The words in the file that say whether a key can change while the server runs.
const RELOAD: [&str; 3] = ["Reload: yes", "Reload: no (its content: yes)", "Reload: no"];

/// Returns the description of each key: the comment directly above it in the shipped file.
fn descriptions() -> BTreeMap<String, String> {
    let (mut section, mut words) = ("", String::new());
    let mut all = BTreeMap::new();
    for line in SHIPPED.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            words.push_str(comment);
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.split_once(" = ") {
            let said = RELOAD.iter().fold(words.clone(), |said, word| said.replace(word, ""));
            all.insert(format!("{section}.{key}"), said.trim().to_owned());
        }
        words.clear();
    }
    all
}

/// Returns every key of `config`, in the order of the file.
pub fn settings(config: &Config, sources: &BTreeMap<String, Source>) -> Vec<Setting> {
    let mut said = descriptions();
    let defaults =
        Layers::default().with(&[]).map(|loaded| entries(&loaded.config)).unwrap_or_default();
    let one = |(name, value): (String, toml::Value)| {
        let known = key::find(&name)?;
        let default = defaults.iter().find(|(other, _)| *other == name);
        let (unit, min, max) = match &known.kind {
            Kind::Whole { unit, min, max } => {
                (unit.trim_start_matches(" of "), Some(*min), Some(*max))
            }
            _ => ("", None, None),
        };
        Some(Setting {
            value: bare(&name, &value),
            unit,
            allowed: known.kind.to_string(),
            min,
            max,
            default: default.map(|(_, value)| bare(&name, value)).unwrap_or_default(),
            source: match sources.get(&name) {
                None => "default",
                Some(Source::File) => "file",
                Some(Source::Environment(_)) => "environment",
                Some(Source::Flag) => "flag",
                Some(Source::Override) => "override",
            },
            overtaken: None,
            at_run_time: known.at_run_time,
            description: said.remove(&name).unwrap_or_default(),
            key: name,
        })
    };
    entries(config).into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::*;

    fn layers(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Layers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        Layers::read(&Sources { file: Some(path), env: own(env), flags: own(flags) }).unwrap()
    }

    fn over(key: &str, value: &str) -> Vec<(String, String)> {
        vec![(key.to_owned(), value.to_owned())]
    }

    fn found(layers: &Layers, overrides: &[(String, String)], key: &str) -> (String, &'static str) {
        let loaded = layers.with(overrides).unwrap();
        let all = settings(&loaded.config, &loaded.sources);
        let one = all.iter().find(|setting| setting.key == key).unwrap();
        (one.value.clone(), one.source)
    }

    #[test]
    fn an_override_wins_over_flag_environment_file_and_default_in_this_order() {
        let key = "limits.issue_per_ip_hour";
        let file = "[limits]\nissue_per_ip_hour = 4";
        let env = [("IPTUNNEL_LIMITS__ISSUE_PER_IP_HOUR", "5")];
        let flags = [(key, "6")];
        let told = |value: &str, source| (value.to_owned(), source);
        assert_eq!(found(&layers("", &[], &[]), &[], key), told("3", "default"));
        assert_eq!(found(&layers(file, &[], &[]), &[], key), told("4", "file"));
        assert_eq!(found(&layers(file, &env, &[]), &[], key), told("5", "environment"));
        assert_eq!(found(&layers(file, &env, &flags), &[], key), told("6", "flag"));
        let overridden = found(&layers(file, &env, &flags), &over(key, "7"), key);
        assert_eq!(overridden, told("7", "override"));
    }

    #[test]
    fn an_override_that_is_not_allowed_is_refused_by_name() {
        let layers = layers("", &[], &[]);
        for (key, value, words) in [
            ("limits.issue_per_ip_hour", "-1", "must be a whole number from 0 to 1000000"),
            ("server.bind", "0.0.0.0:80", "changes with a restart only"),
            ("limits.nothing", "1", "unknown key"),
            ("codes.ttl_seconds", "7200", "must be at most codes.max_lifetime_seconds"),
        ] {
            let error = layers.with(&over(key, value)).err().unwrap().to_string();
            assert!(error.contains(key) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_kept_override_that_is_no_longer_allowed_is_left_out_and_reported() {
        let layers = layers("", &[], &[]);
        let kept = [over("gone.key", "1"), over("limits.issue_per_ip_day", "9")].concat();
        let loaded = layers.with_kept(Vec::new(), kept).unwrap();
        assert_eq!(loaded.config.limits.allowed(iptunnel_domain::limit::Policy::IssuePerIpDay), 9);
        assert_eq!(loaded.left_out.len(), 1);
        assert!(loaded.left_out[0].contains("gone.key"));
    }

    #[test]
    fn kept_overrides_that_are_allowed_only_together_all_count_in_whatever_order_they_were_kept() {
        let layers = layers("", &[], &[]);
        let (most, life) = ("codes.max_lifetime_seconds", "codes.ttl_seconds");
        for (max, ttl) in [("120", "60"), ("10000", "7200")] {
            let both = [over(most, max), over(life, ttl)].concat();
            let turned = [over(life, ttl), over(most, max)].concat();
            // A change that is no longer valid does not affect the others.
            let more = [both.clone(), over("gone.key", "1")].concat();
            for (kept, left_out) in [(both, 0), (turned, 0), (more, 1)] {
                let loaded = layers.with_kept(Vec::new(), kept).unwrap();
                assert_eq!(loaded.left_out.len(), left_out, "{:?}", loaded.left_out);
                assert_eq!(loaded.config.lifetimes.max_lifetime.to_string(), max);
                assert_eq!(loaded.config.lifetimes.code.to_string(), ttl);
            }
        }
    }

    #[test]
    fn every_key_has_a_description_and_its_allowed_values() {
        let all = settings(&Config::default(), &BTreeMap::new());
        assert!(all.len() > 40);
        for setting in all {
            assert!(!setting.description.is_empty(), "{}", setting.key);
            assert!(!setting.allowed.is_empty(), "{}", setting.key);
            assert_eq!(setting.value, setting.default, "{}", setting.key);
        }
    }
}
