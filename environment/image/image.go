// Package image knows the image versions of Composer 1, 2 and 3.
//
// It owns the list, in one data file with release and end dates, and the
// resolution of aliases such as composer-1-airflow-1. It refuses what is not in
// the list, with the versions to take instead.
package image

// Catalogue is the list of image versions.
type Catalogue struct{}
