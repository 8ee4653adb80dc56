//! Schemas in the form of version records.

use millstream_common::Result;
use millstream_proto::version as proto;
use millstream_proto::version::value_form::Kind;

use super::{Field, Form, KeyColumn, Schema, Ttl, TtlClock, type_name, type_of_name};
use crate::run::bad_record;

pub(crate) fn schema_to_proto(schema: &Schema) -> proto::StateSchema {
    let column = |c: &KeyColumn| proto::KeyColumn {
        name: c.name.clone(),
        r#type: type_name(&c.ty).unwrap_or_default(),
        nullable: c.nullable,
    };
    let clock = |clock| match clock {
        TtlClock::EventTime => proto::state_schema::Clock::EventTime,
        TtlClock::ProcessingTime => proto::state_schema::Clock::ProcessingTime,
    };
    proto::StateSchema {
        key: schema.key.iter().map(column).collect(),
        map_key: schema.map_key.iter().map(column).collect(),
        value: Some(form_to_proto(&schema.value)),
        ttl_ms: schema.ttl.map_or(0, |t| t.duration_ms.unsigned_abs()),
        ttl_clock: schema.ttl.map_or(0, |t| clock(t.clock).into()),
    }
}

fn form_to_proto(form: &Form) -> proto::ValueForm {
    let plain = |kind: Kind, text: &str| proto::ValueForm {
        kind: kind.into(),
        text: text.to_owned(),
        fields: Vec::new(),
        item: None,
    };
    let around = |kind, item: &Form| proto::ValueForm { item: Some(Box::new(form_to_proto(item))), ..plain(kind, "") };
    match form {
        Form::Nothing => plain(Kind::Nothing, ""),
        Form::Integer => plain(Kind::Integer, ""),
        Form::Column(ty) => plain(Kind::Column, &type_name(ty).unwrap_or_default()),
        Form::Record { kind, fields } => {
            let fields = fields.iter().map(field_to_proto).collect();
            proto::ValueForm { fields, ..plain(Kind::Record, kind) }
        }
        Form::List(item) => around(Kind::List, item),
        Form::Framed(item) => around(Kind::Framed, item),
        Form::Rest => plain(Kind::Rest, ""),
        Form::Opaque(text) => plain(Kind::Opaque, text),
    }
}

fn field_to_proto(field: &Field) -> proto::ValueField {
    proto::ValueField {
        id: field.id,
        name: field.name.clone(),
        nullable: field.nullable,
        form: Some(form_to_proto(&field.form)),
        default_value: field.default.clone(),
    }
}

pub(crate) fn schema_from_proto(schema: &proto::StateSchema) -> Result<Schema> {
    let value = schema.value.as_ref().ok_or_else(|| bad_record("a schema without a value"))?;
    let column =
        |c: &proto::KeyColumn| Ok(KeyColumn { name: c.name.clone(), ty: known_type(&c.r#type)?, nullable: c.nullable });
    let ttl = match schema.ttl_ms {
        0 => None,
        ms => {
            let duration_ms = i64::try_from(ms).map_err(|_| bad_record("a TTL without end"))?;
            let clock = match schema.ttl_clock() {
                proto::state_schema::Clock::EventTime => TtlClock::EventTime,
                proto::state_schema::Clock::ProcessingTime => TtlClock::ProcessingTime,
                proto::state_schema::Clock::Unknown => return Err(bad_record("a TTL by an unknown clock")),
            };
            Some(Ttl { duration_ms, clock })
        }
    };
    let columns = |columns: &[proto::KeyColumn]| columns.iter().map(column).collect::<Result<_>>();
    let (key, map_key) = (columns(&schema.key)?, columns(&schema.map_key)?);
    Ok(Schema { key, map_key, value: form_from_proto(value)?, ttl })
}

fn form_from_proto(form: &proto::ValueForm) -> Result<Form> {
    let item = || form.item.as_ref().ok_or_else(|| bad_record("a form of nothing")).and_then(|f| form_from_proto(f));
    Ok(match form.kind() {
        Kind::Nothing => Form::Nothing,
        Kind::Integer => Form::Integer,
        Kind::Column => Form::Column(known_type(&form.text)?),
        Kind::Record => {
            let fields = form.fields.iter().map(field_from_proto).collect::<Result<_>>()?;
            Form::Record { kind: form.text.clone(), fields }
        }
        Kind::List => Form::List(Box::new(item()?)),
        Kind::Framed => Form::Framed(Box::new(item()?)),
        Kind::Rest => Form::Rest,
        Kind::Opaque => Form::Opaque(form.text.clone()),
        Kind::Unknown => return Err(bad_record("a value of an unknown form")),
    })
}

fn field_from_proto(field: &proto::ValueField) -> Result<Field> {
    let form = field.form.as_ref().ok_or_else(|| bad_record("a field without a form"))?;
    Ok(Field {
        id: field.id,
        name: field.name.clone(),
        nullable: field.nullable,
        form: form_from_proto(form)?,
        default: field.default_value.clone(),
    })
}

fn known_type(name: &str) -> Result<arrow_schema::DataType> {
    type_of_name(name).ok_or_else(|| bad_record(&format!("the type '{name}' of a column is unknown")))
}
