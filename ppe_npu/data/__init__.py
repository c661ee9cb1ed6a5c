"""Files to model inputs: paths, pictures, frames of videos."""
