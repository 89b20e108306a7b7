//! Brings over what is known of the objects: who may see them, and what leads to them.

use std::sync::PoisonError;

use super::Moving;
use super::error::{MovingError, Side};
use super::report::Report;
use crate::index::{Row, RowKey, Table};

impl Moving {
    /// Brings all rows over but those of objects, which come with the content; tags last.
    pub(super) async fn bring_rows(&self, report: &mut Report) -> Result<(), MovingError> {
        for table in Table::ALL.into_iter().filter(|table| *table != Table::Objects) {
            let mut behind = RowKey::default();
            while let Some(mut page) = self.page(table, &mut behind, table.page()).await? {
                self.leave_out_lost(&mut page);
                if table == Table::Tags {
                    report.tags += page.len() as u64;
                }
                // In one directory, it is one index.
                if !self.same.index {
                    self.take_in(page).await?;
                }
            }
        }
        let pins = self.from.index.pins().await.map_err(|error| MovingError::Index(Side::Old, error))?;
        report.pins = pins.len() as u64;
        for pin in pins {
            self.to.index.set_pin(pin, true).await.map_err(|error| MovingError::Index(Side::New, error))?;
        }
        Ok(())
    }

    /// Leaves out what leads to objects that could not be brought over: they have to be learnt again.
    fn leave_out_lost(&self, page: &mut Vec<Row>) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        page.retain(|row| row.object().is_none_or(|object| !lost.contains(object)));
    }
}
