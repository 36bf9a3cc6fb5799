"""What a coded head is compared with: quantised and trimmed heads."""
