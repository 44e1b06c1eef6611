package environment

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
)

// A maintenance window opens for at least this long at a time and a week.
const (
	minMaintenance       = 4 * time.Hour
	minMaintenanceWeekly = 12 * time.Hour
)

var weekdays = []string{"MO", "TU", "WE", "TH", "FR", "SA", "SU"}

// checkMaintenance checks a window: FREQ=DAILY or FREQ=WEEKLY;BYDAY=…, at least
// four hours at a time and twelve a week.
func checkMaintenance(p *problems, w *servicepb.MaintenanceWindow) {
	if w == nil {
		return
	}
	if !w.GetStartTime().IsValid() || w.StartTime == nil {
		p.add(fieldMaintenance+".start_time", "MAINTENANCE_WINDOW_INCOMPLETE",
			"The maintenance window has no start time. Give startTime, endTime and recurrence.")
	}
	if !w.GetEndTime().IsValid() || w.EndTime == nil {
		p.add(fieldMaintenance+".end_time", "MAINTENANCE_WINDOW_INCOMPLETE",
			"The maintenance window has no end time. Give startTime, endTime and recurrence.")
	}
	times, problem := timesAWeek(w.GetRecurrence())
	if problem != "" {
		p.add(fieldMaintenance+".recurrence", "MAINTENANCE_RECURRENCE_MALFORMED",
			fmt.Sprintf("The maintenance window's recurrence '%s' %s. Write FREQ=DAILY, or FREQ=WEEKLY;BYDAY= with days of %s, for example FREQ=WEEKLY;BYDAY=SA,SU.", w.GetRecurrence(), problem, strings.Join(weekdays, ",")),
			"value", w.GetRecurrence())
	}
	if w.StartTime == nil || w.EndTime == nil || !w.StartTime.IsValid() || !w.EndTime.IsValid() {
		return
	}
	length := w.EndTime.AsTime().Sub(w.StartTime.AsTime())
	switch {
	case length <= 0:
		p.add(fieldMaintenance+".end_time", "MAINTENANCE_WINDOW_TOO_SHORT",
			fmt.Sprintf("The maintenance window ends at %s, not after it starts at %s. Choose a later end time.", rfc3339(w.EndTime.AsTime()), rfc3339(w.StartTime.AsTime())),
			"startTime", rfc3339(w.StartTime.AsTime()), "endTime", rfc3339(w.EndTime.AsTime()))
	case length < minMaintenance:
		p.add(fieldMaintenance+".end_time", "MAINTENANCE_WINDOW_TOO_SHORT",
			fmt.Sprintf("The maintenance window is %s long. It has to be at least %s long at a time.", hours(length), hours(minMaintenance)),
			"length", hours(length), "minimum", hours(minMaintenance))
	case length > 24*time.Hour:
		p.add(fieldMaintenance+".end_time", "MAINTENANCE_WINDOW_TOO_LONG",
			fmt.Sprintf("The maintenance window is %s long. It can be at most 24 hours long at a time.", hours(length)), "length", hours(length))
	case problem == "" && time.Duration(times)*length < minMaintenanceWeekly:
		p.add(fieldMaintenance, "MAINTENANCE_WINDOW_TOO_SHORT",
			fmt.Sprintf("The maintenance window is %s long, %s: %s in all. It has to be at least %s a week. Add days, or make it longer.", hours(length), weekly(times), hours(time.Duration(times)*length), hours(minMaintenanceWeekly)),
			"length", hours(length), "recurrence", w.GetRecurrence(), "minimum", hours(minMaintenanceWeekly))
	}
}

// timesAWeek reads a recurrence; problem says what is wrong with it.
func timesAWeek(recurrence string) (times int, problem string) {
	if recurrence == "" {
		return 0, "is empty"
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(recurrence, ";") {
		name, value, ok := strings.Cut(part, "=")
		if _, twice := parts[name]; !ok || twice || name != "FREQ" && name != "BYDAY" {
			return 0, fmt.Sprintf("has the part '%s'", part)
		}
		parts[name] = value
	}
	days, byDay := parts["BYDAY"]
	switch parts["FREQ"] {
	case "DAILY":
		if byDay {
			return 0, "has BYDAY with FREQ=DAILY"
		}
		return 7, ""
	case "WEEKLY":
		if !byDay {
			return 0, "has no BYDAY"
		}
		seen := map[string]bool{}
		for day := range strings.SplitSeq(days, ",") {
			if !slices.Contains(weekdays, day) || seen[day] {
				return 0, fmt.Sprintf("has the day '%s'", day)
			}
			seen[day] = true
		}
		return len(seen), ""
	}
	return 0, fmt.Sprintf("has the frequency '%s'", parts["FREQ"])
}

func weekly(times int) string {
	if times == 1 {
		return "once a week"
	}
	return fmt.Sprintf("%d times a week", times)
}

func hours(d time.Duration) string {
	if d == time.Hour {
		return "1 hour"
	}
	if d%time.Hour == 0 {
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
