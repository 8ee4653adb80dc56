//! Avro records as rows.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use parking_lot::Mutex;

use super::registry::{Known, Plans, SchemaRegistry, unframe};
use super::resolve::{Plan, Wanted};
use super::schema::Schema;
use crate::columns::{Rows, bad};
use crate::{Decoder, DecodingFormat};

/// With which schema records were written.
#[derive(Clone)]
pub enum Written {
    /// All of them with this one (its text): a record is the encoding and nothing else.
    Schema(String),
    /// Each with the one whose id it names (Confluent's wire format).
    Registered(Arc<dyn SchemaRegistry>),
}

/// Reads Avro records.
#[derive(Clone)]
pub struct AvroDecoding {
    table: SchemaRef,
    plans: Origin,
}

#[derive(Clone)]
enum Origin {
    One(Arc<Plan>),
    ById(Arc<Plans>),
}

impl AvroDecoding {
    /// Reads records into the columns of `table`; an error names a column that has no form in Avro, or that one schema for all has
    /// nothing for.
    pub fn new(table: SchemaRef, written: Written) -> Result<Self> {
        let row = Arc::new(Field::new("", DataType::Struct(table.fields().clone()), false));
        let wanted = Wanted::of_arrow(&row).map_err(|what| {
            Error::config(what)
                .code(1350)
                .next("the table of columns in the documentation of the format says what can be read")
        })?;
        Self::of(table, wanted, written)
    }

    /// Reads records into the columns that `reader` asks for, the Avro schema of a record, with its defaults, aliases and symbols.
    /// Its types give the columns those types that they are read from first in the table of the module.
    pub fn with_reader(reader: &str, written: Written) -> Result<Self> {
        let wanted = Schema::parse(reader).and_then(|schema| Wanted::of_reader(&Arc::new(schema)));
        let wanted = wanted.map_err(|what| schema_error("the reader's", &what))?;
        let DataType::Struct(fields) = wanted.field.data_type() else {
            return Err(Error::internal("the schema of a table that is no row"));
        };
        Self::of(Arc::new(ArrowSchema::new(fields.clone())), wanted, written)
    }

    fn of(table: SchemaRef, wanted: Wanted, written: Written) -> Result<Self> {
        let plans = match written {
            Written::Registered(registry) => Origin::ById(Arc::new(Plans::new(registry, Arc::new(wanted)))),
            Written::Schema(text) => {
                let plan = Schema::parse(&text).and_then(|schema| Plan::new(Arc::new(schema), &wanted));
                Origin::One(Arc::new(plan.map_err(|what| schema_error("the writer's", &what))?))
            }
        };
        Ok(Self { table, plans })
    }
}

fn schema_error(whose: &str, what: &str) -> Error {
    Error::config(format!("{whose} Avro schema cannot be used: {what}")).code(1351)
}

impl DecodingFormat for AvroDecoding {
    fn name(&self) -> &'static str {
        match self.plans {
            Origin::One(_) => "avro",
            Origin::ById(_) => "avro-confluent",
        }
    }

    fn schema(&self) -> SchemaRef {
        self.table.clone()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let rows = Rows::new(&self.table)?;
        Ok(match &self.plans {
            Origin::One(plan) => Box::new(PlainDecoder { rows, plan: plan.clone() }),
            Origin::ById(plans) => {
                Box::new(RegisteredDecoder { rows, plans: plans.clone(), current: None, arrived: Arc::default() })
            }
        })
    }
}

/// Of records that are the encoding and nothing else.
struct PlainDecoder {
    rows: Rows,
    plan: Arc<Plan>,
}

impl Decoder for PlainDecoder {
    fn push(&mut self, record: &[u8]) -> Result<()> {
        self.rows.add(|columns| self.plan.read(record, columns).map(|()| 1))
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.rows.take()
    }
}

/// Of records that name their schema.
struct RegisteredDecoder {
    rows: Rows,
    plans: Arc<Plans>,
    /// The schema of the last record: mostly that of the next one, too.
    current: Option<(u32, Arc<Plan>)>,
    /// What was asked for last; others may have pushed it out of what is known to all.
    arrived: Arc<Mutex<Option<(u32, Known)>>>,
}

impl RegisteredDecoder {
    fn is_current(&self, id: u32) -> bool {
        self.current.as_ref().is_some_and(|(of, _)| *of == id)
    }

    /// Makes sure that the answer for the next record is at hand, if there is one.
    fn look_up(&mut self, id: u32) -> bool {
        let mut arrived = self.arrived.lock();
        if arrived.as_ref().is_none_or(|(of, _)| *of != id) {
            *arrived = self.plans.get(id).map(|known| (id, known));
        }
        arrived.is_some()
    }
}

impl Decoder for RegisteredDecoder {
    fn before(&mut self, record: &[u8]) -> Option<BoxFuture<'static, Result<()>>> {
        let (id, _) = unframe(record).ok()?;
        if self.is_current(id) || self.look_up(id) {
            return None;
        }
        let (plans, arrived) = (self.plans.clone(), self.arrived.clone());
        Some(Box::pin(async move {
            let known = plans.ask(id).await?;
            *arrived.lock() = Some((id, known));
            Ok(())
        }))
    }

    fn push(&mut self, record: &[u8]) -> Result<()> {
        let (id, encoding) = unframe(record).map_err(|what| bad(&what))?;
        if !self.is_current(id) {
            self.look_up(id);
            match self.arrived.lock().take() {
                Some((_, Known::Plan(plan))) => self.current = Some((id, plan)),
                Some((_, Known::Bad(code, what))) => return Err(Error::data(&*what).code(code)),
                None => return Err(Error::internal(format!("a record came before its schema {id} was awaited"))),
            }
        }
        let Some((_, plan)) = &self.current else { return Err(Error::internal("a record without a schema")) };
        self.rows.add(|columns| plan.read(encoding, columns).map(|()| 1))
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        self.rows.take()
    }
}
