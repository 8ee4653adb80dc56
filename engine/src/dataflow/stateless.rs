//! The functions behind `map`, `filter` and `select`: made with the graph, called once per batch.

use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use millstream_common::{Error, Result};

use super::plan::{code, place};
use crate::operators::map::MapFn;

/// `f`, whose answers are compared with the schema it promised: every operator behind it was built for that.
pub(super) fn checked<F>(name: &str, schema: SchemaRef, f: F) -> MapFn
where
    F: Fn(&RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static,
{
    let place = place("map", name);
    Arc::new(move |batch| {
        let mapped = f(batch)?;
        if !Arc::ptr_eq(&mapped.schema(), &schema) && mapped.schema().fields() != schema.fields() {
            return Err(Error::config(format!("it answered with {}, not with {schema}", mapped.schema()))
                .code(code::WRONG_TYPE)
                .at(place.clone())
                .next("declare the schema that the function makes"));
        }
        Ok(mapped)
    })
}

/// The rows for which `f` answers true.
pub(super) fn filter<F>(name: &str, f: F) -> MapFn
where
    F: Fn(&RecordBatch) -> Result<BooleanArray> + Send + Sync + 'static,
{
    let place = place("filter", name);
    Arc::new(move |batch| {
        let (keep, rows) = (f(batch)?, batch.num_rows());
        if keep.len() != rows {
            let what = format!("it answered with {} values for {rows} rows", keep.len());
            return Err(Error::config(what).code(code::WRONG_TYPE).at(place.clone()));
        }
        match keep.true_count() {
            0 => Ok(batch.slice(0, 0)),
            n if n == rows => Ok(batch.clone()),
            _ => filter_record_batch(batch, &keep)
                .map_err(|e| Error::internal("rows cannot be filtered").at(place.clone()).source(e)),
        }
    })
}

/// Some columns, under the names of `schema`. Copies no values.
pub(super) fn select(schema: SchemaRef, indices: Vec<usize>) -> MapFn {
    Arc::new(move |batch| {
        let columns = indices.iter().map(|&i| batch.column(i).clone()).collect();
        RecordBatch::try_new(schema.clone(), columns)
            .map_err(|e| Error::internal("the columns of a batch are not those of its stream").source(e))
    })
}
