//! Prints a table.

/// Prints the lines with aligned columns. The column `names` is aligned to the left, the others to the right.
pub fn print<const COLUMNS: usize>(lines: &[[String; COLUMNS]], names: usize) {
    let mut widths = [0; COLUMNS];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == names { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            })
            .collect();
        println!("{}", cells.join("  "));
    }
}
