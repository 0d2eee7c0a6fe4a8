"""Tables for the terminal."""


def table(head, rows):
    """Lines of a table: the first column to the left, the rest to the right. All cells are strings."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
            for row in (head, *rows)]
