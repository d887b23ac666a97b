"""What a bundle is and does as one HTML file: facts in, text out. One section a file."""
