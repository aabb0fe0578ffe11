"""Small correct programs that repair tasks are made from; read as text, never imported as a package."""
