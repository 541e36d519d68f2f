"""Sources of text: what is named is read row by row, judged, and given as tokens or as text."""
