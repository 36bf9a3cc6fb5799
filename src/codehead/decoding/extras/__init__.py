"""What single tokens have beside their codewords: dense rows, extra bits, a bias."""
