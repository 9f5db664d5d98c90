"""Parts for dogbreeds: each module has one class, and conf/ the option that names it."""
