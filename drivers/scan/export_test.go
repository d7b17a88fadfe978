package scan

// Telling is exported to tests.
var Telling = telling
