//! Avro schemas, read as far as records need them.
//!
//! Lenient where a registry may hold what is not quite a schema: names may have any characters, and a default that does not fit
//! its type matters only to those who need it. Source: the specification of Apache Avro 1.12, "Schema Declaration".

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The place of a type in [`Schema::nodes`]: named types may contain themselves.
pub(super) type Id = usize;

/// A schema and all types in it.
pub(super) struct Schema {
    nodes: Vec<Node>,
    pub(super) root: Id,
}

pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) logical: Logical,
}

pub(super) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum { symbols: Vec<String>, default: Option<String> },
    Record(Vec<Field>),
    Array(Id),
    Map(Id),
    Union(Vec<Id>),
}

/// What a value means beyond its kind; what is not known here means nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logical {
    None,
    Date,
    TimeMillis,
    TimeMicros,
    /// Since 1970, in units of `10^-digits` seconds; of an unnamed zone when `local`.
    Moment {
        digits: u32,
        local: bool,
    },
    Decimal {
        precision: u8,
        scale: u8,
    },
    Uuid,
}

pub(super) struct Field {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) default: Option<Value>,
    pub(super) of: Id,
}

impl Schema {
    /// Reads a schema; otherwise it says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // serde_json refuses what is nested deeper than 128.
        let json: Value = serde_json::from_str(text).map_err(|e| format!("no JSON ({e})"))?;
        let mut parser = Parser { nodes: Vec::new(), names: BTreeMap::new() };
        let root = parser.any(&json, "")?;
        Ok(Self { nodes: parser.nodes, root })
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }
}

impl Kind {
    /// As a message calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Int => "int",
            Self::Long => "long",
            Self::Float => "float",
            Self::Double => "double",
            Self::Bytes => "bytes",
            Self::Text => "string",
            Self::Fixed(_) => "fixed",
            Self::Enum { .. } => "enum",
            Self::Record(_) => "record",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Union(_) => "union",
        }
    }

    fn primitive(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "bytes" => Self::Bytes,
            "string" => Self::Text,
            _ => return None,
        })
    }
}

struct Parser {
    nodes: Vec<Node>,
    names: BTreeMap<String, Id>,
}

impl Parser {
    fn add(&mut self, kind: Kind, logical: Logical) -> Id {
        self.nodes.push(Node { kind, logical });
        self.nodes.len() - 1
    }

    fn any(&mut self, json: &Value, namespace: &str) -> Result<Id, String> {
        match json {
            Value::String(name) => self.called(name, namespace, &Map::new()),
            Value::Array(branches) => {
                let branches = branches.iter().map(|b| self.any(b, namespace)).collect::<Result<Vec<_>, _>>()?;
                if branches.iter().any(|&b| matches!(self.nodes[b].kind, Kind::Union(_))) {
                    return Err("a union directly within a union".into());
                }
                Ok(self.add(Kind::Union(branches), Logical::None))
            }
            Value::Object(object) => match object.get("type") {
                Some(Value::String(name)) => self.object(name, object, namespace),
                Some(inner) => self.any(inner, namespace),
                None => Err("a type without a \"type\"".into()),
            },
            _ => Err(format!("{json} is no type")),
        }
    }

    /// A primitive type, or one that was defined before.
    fn called(&mut self, name: &str, namespace: &str, object: &Map<String, Value>) -> Result<Id, String> {
        if let Some(kind) = Kind::primitive(name) {
            let logical = logical(&kind, object);
            return Ok(self.add(kind, logical));
        }
        let full = full_name(name, namespace);
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| format!("type '{name}' is not defined"))
    }

    fn object(&mut self, name: &str, object: &Map<String, Value>, namespace: &str) -> Result<Id, String> {
        let member = |key: &str| object.get(key).ok_or_else(|| format!("a type '{name}' without \"{key}\""));
        match name {
            "array" => {
                let items = self.any(member("items")?, namespace)?;
                Ok(self.add(Kind::Array(items), Logical::None))
            }
            "map" => {
                let values = self.any(member("values")?, namespace)?;
                Ok(self.add(Kind::Map(values), Logical::None))
            }
            "fixed" => {
                let size = member("size")?.as_u64().and_then(|s| usize::try_from(s).ok());
                let kind = Kind::Fixed(size.ok_or("a fixed type whose size is no number of bytes")?);
                let logical = logical(&kind, object);
                self.define(object, namespace, kind, logical).map(|(id, _)| id)
            }
            "enum" => {
                let symbols = texts(member("symbols")?);
                if member("symbols")?.as_array().is_none_or(|all| all.len() != symbols.len()) {
                    return Err("an enum whose symbols are no strings".into());
                }
                let default = object.get("default").and_then(Value::as_str).map(str::to_owned);
                self.define(object, namespace, Kind::Enum { symbols, default }, Logical::None).map(|(id, _)| id)
            }
            "record" | "error" => {
                // Its name is known before its fields are read: they may be of its type.
                let (id, namespace) = self.define(object, namespace, Kind::Record(Vec::new()), Logical::None)?;
                let fields = member("fields")?.as_array().ok_or("a record whose fields are no array")?;
                let fields = fields.iter().map(|f| self.field(f, &namespace)).collect::<Result<Vec<_>, _>>()?;
                self.nodes[id].kind = Kind::Record(fields);
                Ok(id)
            }
            _ => self.called(name, namespace, object),
        }
    }

    fn field(&mut self, json: &Value, namespace: &str) -> Result<Field, String> {
        let name = json.get("name").and_then(Value::as_str).ok_or("a field without a name")?;
        let of = json.get("type").ok_or_else(|| format!("field '{name}' has no type"))?;
        let of = self.any(of, namespace).map_err(|e| format!("{name}: {e}"))?;
        let aliases = json.get("aliases").map(texts).unwrap_or_default();
        Ok(Field { name: name.to_owned(), aliases, default: json.get("default").cloned(), of })
    }

    /// Adds a type under the name that `object` gives it; also the namespace of what stands in it.
    fn define(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
        kind: Kind,
        logical: Logical,
    ) -> Result<(Id, String), String> {
        let text = |key| object.get(key).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| format!("a type '{}' without a name", kind.name()))?;
        let full = full_name(name, text("namespace").unwrap_or(namespace));
        let id = self.add(kind, logical);
        let inner = full.rsplit_once('.').map_or("", |(space, _)| space).to_owned();
        match self.names.insert(full, id) {
            None => Ok((id, inner)),
            Some(_) => Err(format!("type '{name}' is defined twice")),
        }
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn texts(json: &Value) -> Vec<String> {
    json.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn logical(kind: &Kind, object: &Map<String, Value>) -> Logical {
    let moment = |digits, local| Logical::Moment { digits, local };
    match (object.get("logicalType").and_then(Value::as_str).unwrap_or_default(), kind) {
        ("date", Kind::Int) => Logical::Date,
        ("time-millis", Kind::Int) => Logical::TimeMillis,
        ("time-micros", Kind::Long) => Logical::TimeMicros,
        ("timestamp-millis", Kind::Long) => moment(3, false),
        ("timestamp-micros", Kind::Long) => moment(6, false),
        ("timestamp-nanos", Kind::Long) => moment(9, false),
        ("local-timestamp-millis", Kind::Long) => moment(3, true),
        ("local-timestamp-micros", Kind::Long) => moment(6, true),
        ("local-timestamp-nanos", Kind::Long) => moment(9, true),
        ("uuid", Kind::Text | Kind::Fixed(16)) => Logical::Uuid,
        ("decimal", Kind::Bytes | Kind::Fixed(_)) => {
            let number = |key| object.get(key).map_or(Some(0), |v| v.as_u64().and_then(|v| u8::try_from(v).ok()));
            match (number("precision"), number("scale")) {
                (Some(precision), Some(scale)) if precision > 0 && scale <= precision => {
                    Logical::Decimal { precision, scale }
                }
                _ => Logical::None,
            }
        }
        _ => Logical::None,
    }
}
