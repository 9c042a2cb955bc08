"""The synthetic theatre: drawn people who speak, the embedded model made from them, and its evaluation."""
