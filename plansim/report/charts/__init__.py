"""The charts of a report, one file each: data to SVG."""
