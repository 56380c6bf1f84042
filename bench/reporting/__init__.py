"""What is shown of rows: tables, figures, samples, methods' cards and the report; nothing here measures."""
