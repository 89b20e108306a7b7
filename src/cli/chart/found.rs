//! What was found in a Helm chart.

/// The images that a chart names.
#[derive(Debug, Default)]
pub struct Found {
    pub images: Vec<String>,
    /// What could not be known, or was left out.
    pub notes: Vec<String>,
}

impl Found {
    /// Adds an image, unless it is there.
    pub fn add(&mut self, image: String) {
        if !self.images.contains(&image) {
            self.images.push(image);
        }
    }
}
